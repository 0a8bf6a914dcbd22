// The backward pass of attention on a CUDA device, on the terms of kernels/cuda/attend.h. Semantics as in
// kernels/attention_backward.h. Nothing is added atomically, so the bits are the same every time.
#pragma once

#include "kernels/cuda/attend.h"

namespace tessera::cuda {

struct BackwardPointers {
  ConstDeviceView query;                // [Sq, heads, qk_width]     the shape's dtype
  ConstDeviceView key;                  // [Sk, kv_heads, qk_width]  likewise
  ConstDeviceView value;                // [Sk, kv_heads, v_width]   likewise
  ConstDeviceView output_gradient;      // [Sq, heads, v_width]      likewise
  ConstDeviceView lse;                  // [Sq, heads] fp32, final; rows of -infinity contribute nothing
  ConstDeviceView delta;                // [Sq, heads] fp32, see ComputeDelta
  DeviceView query_gradient;            // [Sq, heads, qk_width] fp32, added to
  DeviceView key_gradient;              // [Sk, kv_heads, qk_width] fp32, added to
  DeviceView value_gradient;            // [Sk, kv_heads, v_width] fp32, added to
  const float* alibi_slopes = nullptr;  // [heads], device; null unless the shape has alibi
  const std::byte* work = nullptr;      // BackwardWork::bytes, device, at a multiple of 16 bytes
};

// One compiled family of backward kernels for a width.
struct BackwardInstance {
  DType dtype;
  int qk_width;
  int v_width;
  int own_rows;
  int other_rows;
  int (*launch)(const BackwardParams&, CUstream_st*);  // returns a cudaError_t
};

struct BackwardWork {
  std::vector<std::byte> bytes;  // to be copied to the device once
  WorkLayout by_queries;
  WorkLayout by_keys;
  TileRows rows;
  const BackwardInstance* instance = nullptr;
};

using BackwardKernel = InstanceKernel<BackwardInstance>;

std::span<const BackwardKernel* const> BackwardKernels();
StatusOr<const BackwardKernel*> FindBackwardKernel(const AttendTraits& traits, std::string_view name = {});

// As PlanAttend and LaunchAttend.
StatusOr<BackwardWork> PlanBackward(const BackwardKernel& kernel, const AttendShape& shape, std::span<const Tile> tiles,
                                    std::span<const Band> bands);
Status LaunchBackward(const BackwardKernel& kernel, const AttendShape& shape, const BackwardWork& work,
                      const BackwardPointers& pointers, CUstream_st* stream);

}  // namespace tessera::cuda
