// The one driver function that Tessera calls: cuTensorMapEncodeTiled, found through the runtime. It refuses what the
// driver documents as an error.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "tests/virtual_gpu/cudart/node.h"
#include "tests/virtual_gpu/ptx/tensor_map.h"

using namespace tessera::vgpu;

namespace {

int ElementBytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
      return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
      return 8;
    default:
      return 0;
  }
}

// Bytes that the innermost box dimension may span, 0 for a swizzle that is not modelled.
uint64_t SwizzleSpan(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE:
      return UINT64_MAX;
    case CU_TENSOR_MAP_SWIZZLE_32B:
      return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B:
      return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B:
      return 128;
    default:
      return 0;
  }
}

CUresult Refuse(const char* why) {
  std::fprintf(stderr, "vgpu: cuTensorMapEncodeTiled: %s\n", why);
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult EncodeTiled(CUtensorMap* out, CUtensorMapDataType type, cuuint32_t rank, void* address,
                     const cuuint64_t* extents, const cuuint64_t* strides, const cuuint32_t* box,
                     const cuuint32_t* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  const int element_bytes = ElementBytes(type);
  if (out == nullptr || reinterpret_cast<uintptr_t>(out) % 64 != 0) return Refuse("the map is not 64-byte aligned");
  if (element_bytes == 0) return Refuse("this data type is not modelled");
  if (rank < 1 || rank > TensorMap::kMaxRank) return Refuse("the rank is not in [1, 5]");
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return Refuse("the address is not 16-byte aligned");
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return Refuse("interleaving is not modelled");
  TensorMap map;
  map.rank = static_cast<uint8_t>(rank);
  map.element_bytes = static_cast<uint8_t>(element_bytes);
  map.swizzle = static_cast<Swizzle>(swizzle);
  map.fill_nan = fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
  map.base = reinterpret_cast<uintptr_t>(address);
  for (cuuint32_t i = 0; i < rank; ++i) {
    if (extents[i] == 0 || extents[i] >> 32 != 0) return Refuse("an extent is not in [1, 2^32)");
    if (box[i] == 0 || box[i] > 256) return Refuse("a box extent is not in [1, 256]");
    if (element_strides[i] == 0 || element_strides[i] > 8) return Refuse("an element stride is not in [1, 8]");
    if (i > 0 && (strides[i - 1] % 16 != 0 || strides[i - 1] >= (uint64_t{1} << 40))) {
      return Refuse("a stride is not a multiple of 16 bytes below 2^40");
    }
    map.extent[i] = static_cast<uint32_t>(extents[i]);
    map.box[i] = box[i];
    map.element_stride[i] = static_cast<uint16_t>(element_strides[i]);
    if (i > 0) map.stride_bytes[i - 1] = strides[i - 1];
  }
  const uint64_t inner_bytes = uint64_t{box[0]} * element_bytes;
  if (inner_bytes % 16 != 0) return Refuse("the innermost box extent is not a multiple of 16 bytes");
  if (inner_bytes > SwizzleSpan(swizzle)) return Refuse("the innermost box extent is wider than the swizzle");
  static_assert(sizeof map == sizeof *out);
  std::memcpy(out, &map, sizeof map);
  return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  return Call([&](Node&) {
    const bool found = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = found ? reinterpret_cast<void*>(&EncodeTiled) : nullptr;
    if (status != nullptr) *status = found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return found || status != nullptr ? cudaSuccess : cudaErrorSymbolNotFound;
  });
}

cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* status) {
  return cudaGetDriverEntryPointByVersion(symbol, function, CUDART_VERSION, flags, status);
}

}  // extern "C"
