// From dot products to scores in units of log2, the base the exponential instruction works in.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/attend_params.h"
#include "kernels/cuda/device/element.cuh"

namespace tessera::cuda {

// Most calls have neither a soft cap nor slopes: their scores are products with one positive factor, which the fused
// multiply-add of the exponential then takes for free. The others are transformed one by one and keep a factor of 1.
struct Scoring {
  __device__ __forceinline__ explicit Scoring(const ScoreParams& score)
      : transforms(score.soft_cap > 0 || score.slopes != nullptr || !(score.scale > 0)),
        factor(transforms ? 1.0f : score.scale * kLog2E) {}
  bool transforms;
  float factor;
};

// s = scale * dot, capped.
__device__ __forceinline__ float CappedScore(const ScoreParams& score, float dot) {
  return score.soft_cap > 0 ? score.soft_cap * tanhf(dot * score.scale_in_cap) : dot * score.scale;
}

// The distance ALiBi takes between a query and a key token.
__device__ __forceinline__ float Distance(const ScoreParams& score, int32_t query_token, int32_t key_token) {
  return static_cast<float>(abs(query_token + score.position_offset - key_token));
}

}  // namespace tessera::cuda
