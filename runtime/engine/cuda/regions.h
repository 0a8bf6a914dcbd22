// Regions of slots in device memory: packed, unpacked and copied in stream order. Internal to the engine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/engine/slots.h"

struct CUstream_st;

namespace tessera {

// Consecutive bytes in row order, as SlotTable::Pack has them. `packed` is device memory.
Status PackAsync(const SlotTable& slots, const Region& region, std::byte* packed, CUstream_st* stream);
Status UnpackAsync(const SlotTable& slots, const Region& region, const std::byte* packed, CUstream_st* stream);
// Between regions of equal shape that do not overlap.
Status CopyRegionAsync(const SlotTable& slots, const Region& from, const Region& to, CUstream_st* stream);
// Between device tensors of equal shape and dtype, any strides.
Status CopyTensorAsync(const ConstTensorView& from, const TensorView& to, CUstream_st* stream);

}  // namespace tessera
