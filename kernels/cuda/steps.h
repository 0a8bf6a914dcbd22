// The row operations around attention on a CUDA device, with the semantics of their CPU namesakes. Views are device
// memory with the same shapes as there. Every call is asynchronous on its stream, allocates nothing and may be
// captured. InvalidArgument when a dtype is not one CUDA serves; Internal when the device refuses the launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/base/geometry.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

struct CUstream_st;

namespace tessera::cuda {

// Rows [rows.begin, rows.end) become the identity: O = 0, LSE = -infinity. Both dense, fp32.
Status ClearPartials(const TensorView& output, const TensorView& lse, Range rows, CUstream_st* stream);

// As MergePartials (kernels/attention.h), fp32.
Status MergePartials(const TensorView& output, const TensorView& lse, int64_t destination_row,
                     const ConstTensorView& other_output, const ConstTensorView& other_lse, int64_t source_row,
                     int64_t count, CUstream_st* stream);

// As FinishPartials (kernels/attention.h). `sinks` is [heads] fp32 on the device, or null.
Status FinishPartials(const ConstTensorView& output, const ConstTensorView& lse, const float* sinks,
                      const TensorView& result, const TensorView& result_lse, CUstream_st* stream);

// As ComputeDelta (kernels/attention_backward.h), delta fp32.
Status ComputeDelta(const ConstTensorView& output, const ConstTensorView& output_gradient, const TensorView& delta,
                    CUstream_st* stream);

// As AddSinkGradient (kernels/attention_backward.h). `sinks` and `gradient` are [heads] fp32 on the device. The order
// of summation is fixed, but not the CPU's.
Status AddSinkGradient(const ConstTensorView& lse, const ConstTensorView& delta, const float* sinks, float* gradient,
                       CUstream_st* stream);

// Rows of a dense view become zero bytes.
Status ZeroRows(const TensorView& view, Range rows, CUstream_st* stream);

// destination[destination_row + r, first_head + h, :] += source[source_row + r, h, :] for `count` rows and the heads of
// `source`. fp32; heads of a row lie without gaps.
Status AddRows(const ConstTensorView& source, int64_t source_row, const TensorView& destination,
               int64_t destination_row, int first_head, int64_t count, CUstream_st* stream);

// Rounds dense fp32 to the destination's dtype; equal shapes.
Status RoundRows(const ConstTensorView& source, const TensorView& destination, CUstream_st* stream);

// Copies `rows` runs of `row_bytes` bytes that start `*_pitch` bytes apart: packs a region of a slot into consecutive
// bytes, unpacks it, or moves it between slots. Device memory that does not overlap.
Status CopyRows(std::byte* destination, int64_t destination_pitch, const std::byte* source, int64_t source_pitch,
                int64_t row_bytes, int64_t rows, CUstream_st* stream);

}  // namespace tessera::cuda
