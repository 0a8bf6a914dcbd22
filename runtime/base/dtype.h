// Element types of tensors and their conversions (round to nearest, ties to even).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace tessera {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr size_t SizeInBytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 4;
    case DType::kBFloat16:
    case DType::kFloat16: return 2;
    case DType::kFloat64: return 8;
  }
  return 0;
}

// What partial results, log-sum-exp and gradient sums of tensors of `dtype` are kept in.
constexpr DType AccumulatorType(DType dtype) { return dtype == DType::kFloat64 ? dtype : DType::kFloat32; }

constexpr std::string_view Name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "fp32";
    case DType::kBFloat16: return "bf16";
    case DType::kFloat16: return "fp16";
    case DType::kFloat64: return "fp64";
  }
  return "unknown";
}

// "fp32", "bf16", "fp16" or "fp64"; nullopt for anything else.
constexpr std::optional<DType> ParseDType(std::string_view name) {
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
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

// IEEE binary16 in integer arithmetic: compilers disagree about _Float16 (GCC 12 lacks it on AArch64, clang 14 on x86-64).
inline uint16_t Float16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x47800000u) {  // 2^16 and above: infinity, or a quiet NaN
    return static_cast<uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
  }
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal: adding 0.5 shifts its 10 bits to the end of the fp32 mantissa and rounds.
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u));
  }
  // Rebias the exponent from 127 to 15; 0xfff plus the last kept bit rounds the 13 dropped bits to nearest even.
  magnitude = magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (magnitude >> 13));
}
inline float FloatFromFloat16(uint16_t value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value & 0x7fffu) << 13;
  if (magnitude >= (0x7c00u << 13)) return std::bit_cast<float>(sign | magnitude | 0x7f800000u);  // infinity, NaN
  // Multiplying by 2^112 rebiases the exponent and normalises subnormals.
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f));
}

// Not inline: GCC 12 would warn of eight bytes where a caller keeps one element of another dtype in fewer.
[[gnu::noinline]] inline double LoadFloat64(const void* data, int64_t index) {
  return static_cast<const double*>(data)[index];
}
[[gnu::noinline]] inline void StoreFloat64(void* data, int64_t index, double value) {
  static_cast<double*>(data)[index] = value;
}

// Reads or writes element `index` of an array of `dtype`; fp64 is rounded to fp32 on its way through a float.
inline float LoadAsFloat(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<const float*>(data)[index];
    case DType::kBFloat16: return FloatFromBFloat16(static_cast<const uint16_t*>(data)[index]);
    case DType::kFloat16: return FloatFromFloat16(static_cast<const uint16_t*>(data)[index]);
    case DType::kFloat64: return static_cast<float>(LoadFloat64(data, index));
  }
  return 0.0f;
}
inline void StoreFromFloat(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat32: static_cast<float*>(data)[index] = value; return;
    case DType::kBFloat16: static_cast<uint16_t*>(data)[index] = BFloat16FromFloat(value); return;
    case DType::kFloat16: static_cast<uint16_t*>(data)[index] = Float16FromFloat(value); return;
    case DType::kFloat64: StoreFloat64(data, index, static_cast<double>(value)); return;
  }
}
// The same for arithmetic in fp64; halves are rounded by way of fp32.
inline double LoadAsDouble(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kFloat64) return LoadFloat64(data, index);
  return static_cast<double>(LoadAsFloat(data, dtype, index));
}
inline void StoreFromDouble(void* data, DType dtype, int64_t index, double value) {
  if (dtype == DType::kFloat64) {
    StoreFloat64(data, index, value);
  } else {
    StoreFromFloat(data, dtype, index, static_cast<float>(value));
  }
}

}  // namespace tessera
