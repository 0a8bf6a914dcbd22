#include "tests/virtual_gpu/nccl/reduce.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace tessera::vgpu {
namespace {

// Half types compute in fp32.
template <typename T>
auto Widen(T value) {
  if constexpr (std::is_arithmetic_v<T>) {
    return value;
  } else {
    return static_cast<float>(value);
  }
}

template <typename T>
T Combine(ncclRedOp_t op, T a_value, T b_value) {
  const auto a = Widen(a_value), b = Widen(b_value);
  switch (op) {
    case ncclProd:
      return static_cast<T>(a * b);
    case ncclMax:
      return static_cast<T>(std::max(a, b));
    case ncclMin:
      return static_cast<T>(std::min(a, b));
    default:
      return static_cast<T>(a + b);
  }
}

// Calls body with a value of the C++ type of `type`.
template <typename Body>
void WithType(ncclDataType_t type, Body&& body) {
  switch (type) {
    case ncclInt8:
      return body(int8_t{});
    case ncclUint8:
      return body(uint8_t{});
    case ncclInt32:
      return body(int32_t{});
    case ncclUint32:
      return body(uint32_t{});
    case ncclInt64:
      return body(int64_t{});
    case ncclUint64:
      return body(uint64_t{});
    case ncclFloat16:
      return body(__half{});
    case ncclBfloat16:
      return body(__nv_bfloat16{});
    case ncclFloat32:
      return body(float{});
    case ncclFloat64:
      return body(double{});
    default:
      return;
  }
}

template <typename T>
T Load(const std::byte* values, size_t i) {
  T value;
  std::memcpy(&value, values + i * sizeof(T), sizeof(T));
  return value;
}

template <typename T>
void Store(std::byte* values, size_t i, T value) {
  std::memcpy(values + i * sizeof(T), &value, sizeof(T));
}

}  // namespace

size_t BytesOf(ncclDataType_t type) {
  size_t bytes = 0;
  WithType(type, [&](auto value) { bytes = sizeof value; });
  return bytes;
}

bool IsModelled(ncclRedOp_t op) {
  return op >= ncclSum && op <= ncclAvg;
}

void Accumulate(ncclDataType_t type, ncclRedOp_t op, size_t count, std::byte* accumulator, const std::byte* summand) {
  WithType(type, [&]<typename T>(T) {
    for (size_t i = 0; i < count; ++i) {
      Store(accumulator, i, Combine(op, Load<T>(accumulator, i), Load<T>(summand, i)));
    }
  });
}

void Divide(ncclDataType_t type, size_t count, std::byte* values, int divisor) {
  WithType(type, [&]<typename T>(T) {
    using Wide = decltype(Widen(T{}));
    for (size_t i = 0; i < count; ++i) {
      Store(values, i, static_cast<T>(Widen(Load<T>(values, i)) / static_cast<Wide>(divisor)));
    }
  });
}

}  // namespace tessera::vgpu
