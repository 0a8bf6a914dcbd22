// Element types of tensors and their conversions (round to nearest, ties to even).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace tessera {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16 };

constexpr size_t SizeInBytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

constexpr std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "fp32";
    case DType::kBFloat16: return "bf16";
    case DType::kFloat16: return "fp16";
  }
  return "unknown";
}

// "fp32", "bf16" or "fp16"; nullopt for anything else.
constexpr std::optional<DType> ParseDType(std::string_view name) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    if (Name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

// bfloat16 is the upper half of an fp32. NaN keeps a quiet bit so that truncation cannot turn it into infinity.
inline uint16_t BFloat16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline float FloatFromBFloat16(uint16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

// IEEE binary16; GCC 12 and clang 14 lower these casts to F16C or to the compiler's correctly rounded routine.
inline uint16_t Float16FromFloat(float value) { return std::bit_cast<uint16_t>(static_cast<_Float16>(value)); }
inline float FloatFromFloat16(uint16_t value) { return static_cast<float>(std::bit_cast<_Float16>(value)); }

// Reads or writes element `index` of an array of `dtype`.
inline float LoadAsFloat(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<const float*>(data)[index];
    case DType::kBFloat16: return FloatFromBFloat16(static_cast<const uint16_t*>(data)[index]);
    case DType::kFloat16: return FloatFromFloat16(static_cast<const uint16_t*>(data)[index]);
  }
  return 0.0f;
}
inline void StoreFromFloat(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat32: static_cast<float*>(data)[index] = value; return;
    case DType::kBFloat16: static_cast<uint16_t*>(data)[index] = BFloat16FromFloat(value); return;
    case DType::kFloat16: static_cast<uint16_t*>(data)[index] = Float16FromFloat(value); return;
  }
}

}  // namespace tessera
