// The row operations around attention, as launched. Every function is asynchronous on `stream`, returns a cudaError_t
// and does nothing when there are no rows. Pointers are device memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device/attend_params.h"

struct CUstream_st;

namespace tessera::cuda {

// 16-bit element types as a run-time choice; single precision besides.
enum class ElementType : uint8_t { kFloat32, kBFloat16, kFloat16 };

struct RowShape {
  int64_t rows;
  int32_t heads;
  int32_t width;
};

// kernels/attention.h, MergePartials: fp32 [rows, heads, width] and [rows, heads].
struct MergeParams {
  Matrix<float> output, lse;
  Matrix<const float> other_output, other_lse;
  RowShape shape;
};
int LaunchMerge(const MergeParams& params, CUstream_st* stream);

// kernels/attention.h, FinishPartials. `sinks` [heads] fp32 or null; strides of `result` in its own elements.
struct FinishParams {
  Matrix<const float> output, lse;
  const float* sinks;
  Matrix<void> result;
  ElementType result_type;
  Matrix<float> result_lse;
  RowShape shape;
};
int LaunchFinish(const FinishParams& params, CUstream_st* stream);

// kernels/attention_backward.h, ComputeDelta. output and gradient share a type; delta is fp32 [rows, heads].
struct DeltaParams {
  Matrix<const void> output, gradient;
  ElementType type;
  Matrix<float> delta;
  RowShape shape;
};
int LaunchDelta(const DeltaParams& params, CUstream_st* stream);

// kernels/attention_backward.h, AddSinkGradient: lse and delta fp32 [rows, heads], sinks and gradient fp32 [heads].
struct SinkGradientParams {
  Matrix<const float> lse, delta;
  const float* sinks;
  float* gradient;
  RowShape shape;  // width unused
};
int LaunchSinkGradient(const SinkGradientParams& params, CUstream_st* stream);

// destination[row, i] += source[row, i] for i < heads * width, fp32, rows of either side without gaps.
struct AddParams {
  float* destination;
  const float* source;
  int64_t destination_stride, source_stride;
  RowShape shape;
};
int LaunchAdd(const AddParams& params, CUstream_st* stream);

// Rounds `count` floats to nearest even.
int LaunchRound(void* destination, ElementType type, const float* source, int64_t count, CUstream_st* stream);

int LaunchFill(float* destination, float value, int64_t count, CUstream_st* stream);
int LaunchZero(void* destination, int64_t bytes, CUstream_st* stream);

// Rows of `row_bytes` bytes each, `*_pitch` bytes apart. The two sides do not overlap.
struct CopyParams {
  std::byte* destination;
  const std::byte* source;
  int64_t destination_pitch, source_pitch;
  int64_t row_bytes, rows;
};
int LaunchCopyRows(const CopyParams& params, CUstream_st* stream);

}  // namespace tessera::cuda
