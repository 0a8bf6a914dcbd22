// Row operations of latent attention and of paged caches on a CUDA device, with the semantics of kernels/mla.h and
// runtime/engine/cache.h. Views are device memory, fp32, bf16 or fp16. Every call is asynchronous on its stream,
// allocates nothing and may be captured. InvalidArgument names what a kernel cannot take; Internal when the device
// refuses the launch.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/device/row_ops.h"
#include "kernels/decode.h"
#include "kernels/mla.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

struct CUstream_st;

namespace tessera::cuda {

// As RmsNormRow, for every row and head. `gamma` is [width] fp32 on the device, or null for ones. `out` may be `in`.
Status RmsNormRows(const ConstTensorView& in, const float* gamma, float epsilon, const TensorView& out,
                   CUstream_st* stream);

// out = scale * in for every row and head, rounded to out's dtype: a change of dtype, or of place, of a part of wider
// rows.
Status ScaleRows(const ConstTensorView& in, float scale, const TensorView& out, CUstream_st* stream);

// What RotateRows reads: [positions, width / 2, 2] cosines and sines, already times YaRN's attention factor; fp64
// inside.
std::vector<float> RopeTableValues(const RopeOptions& options, int width, int64_t positions);

// As RopeTable::Apply, in place, for every row and head of `rows`, whose width is that of the table. `positions` is
// [rows] on the device, `table` a device copy of RopeTableValues.
Status RotateRows(const TensorView& rows, const int64_t* positions, const float* table, RopeLayout layout,
                  CUstream_st* stream);

// out = H (signs * in) / sqrt(width) for every row and head, with the Sylvester matrix H; the width is a power of two
// up to 8192. `signs` is [width] fp32 on the device, or null for ones. `out` may be `in`.
Status HadamardRows(const ConstTensorView& in, const float* signs, const TensorView& out, CUstream_st* stream);

// The keys or the values of a cache layer in device memory.
enum class CachePart : uint8_t { kKeys, kValues };

// Copies row r of `rows` [rows, kv heads, width], of the cache's dtype, to the place slots[r]: what follows
// PagedCache::Append. `slots` is [rows] on the device; those with a negative page are skipped.
Status AppendToCache(const ConstTensorView& rows, const CacheSlot* slots, const CacheLayer& cache, CachePart part,
                     CUstream_st* stream);
// The way back: rows whose slot has a negative page keep what they had.
Status GatherFromCache(const CacheLayer& cache, CachePart part, const CacheSlot* slots, const TensorView& rows,
                       CUstream_st* stream);

}  // namespace tessera::cuda
