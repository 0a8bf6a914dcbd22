// Checks of the caller's tensors against a plan's slots. Internal to the engine.
#pragma once

#include <span>
#include <string_view>

#include "partition/plan.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

namespace tessera {

// InvalidArgument naming the tensor, the field, its value and what the slot needs.
Status CheckTensor(std::string_view name, const ConstTensorView& view, const Slot& slot, DType dtype,
                   MemorySpace space = MemorySpace::kHost);
// A per-head vector: `heads` numbers when `needed`, otherwise none.
Status CheckVector(std::string_view name, std::span<const float> values, bool needed, int heads);
// InvalidArgument when an element of a tensor to be written is one of another. Interleaved views, such as the gradients
// of q, k and v in one packed buffer, share an address range and no element.
Status CheckDisjoint(std::string_view name, const ConstTensorView& written, std::string_view other_name,
                     const ConstTensorView& other);

}  // namespace tessera
