// The virtual GPU's own contents of a CUtensorMap. The real 128 bytes are opaque, so ours are plain: the stand-in for
// cuTensorMapEncodeTiled writes this struct, cp.async.bulk.tensor reads it.
#pragma once

#include <cstdint>

namespace tessera::vgpu {

enum class Swizzle : uint8_t { kNone = 0, k32 = 1, k64 = 2, k128 = 3 };  // values of CUtensorMapSwizzle

struct alignas(64) TensorMap {
  static constexpr uint32_t kMagic = 0x50414d54;  // "TMAP"
  static constexpr int kMaxRank = 5;

  uint32_t magic = kMagic;
  uint8_t rank = 0;           // 1 to 5
  uint8_t element_bytes = 0;  // 1, 2, 4 or 8
  Swizzle swizzle = Swizzle::kNone;
  uint8_t fill_nan =
      0;              // out-of-bounds elements: 0 zero, 1 the NaN of CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
  uint64_t base = 0;  // address of element 0, a multiple of 16
  uint32_t extent[kMaxRank] = {};            // elements; dimension 0 is contiguous
  uint32_t box[kMaxRank] = {};               // elements, at most 256 each
  uint64_t stride_bytes[kMaxRank - 1] = {};  // of dimensions 1 and up, multiples of 16
  uint16_t element_stride[kMaxRank] = {1, 1, 1, 1, 1};
};
static_assert(sizeof(TensorMap) == 128, "as large as CUtensorMap");

}  // namespace tessera::vgpu
