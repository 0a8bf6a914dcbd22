// Elements of a type known at run time.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/steps.h"

namespace tessera::cuda {

__device__ __forceinline__ void StoreRounded(void* data, ElementType type, int64_t index, float value) {
  if (type == ElementType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    const uint32_t packed = type == ElementType::kBFloat16 ? BFloat16::Pack(value, 0.0f) : Float16::Pack(value, 0.0f);
    static_cast<uint16_t*>(data)[index] = static_cast<uint16_t>(packed);
  }
}

__device__ __forceinline__ float LoadFloat(const void* data, ElementType type, int64_t index) {
  if (type == ElementType::kFloat32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return type == ElementType::kBFloat16 ? BFloat16::ToFloat(bits) : Float16::ToFloat(bits);
}

}  // namespace tessera::cuda
