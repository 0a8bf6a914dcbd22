// Non-owning tensor views: pointer, shape, strides, dtype and memory space.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/base/dtype.h"

namespace tessera {

enum class MemorySpace : uint8_t { kHost, kDevice };

// A view of [rows, heads, width] (tokens, heads, head width); width has unit stride. Strides are in elements.
// Rank-2 data such as log-sum-exp [rows, heads] is a view of width 1.
template <typename Byte>
struct BasicTensorView {
  using Pointer = std::conditional_t<std::is_const_v<Byte>, const void*, void*>;
  Pointer data = nullptr;
  DType dtype = DType::kFloat32;
  MemorySpace space = MemorySpace::kHost;
  int64_t rows = 0;
  int heads = 0;
  int width = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;

  // A dense view [rows, heads, width].
  static BasicTensorView Dense(Pointer data, DType dtype, int64_t rows, int heads, int width) {
    return {data, dtype, MemorySpace::kHost, rows, heads, width, int64_t{heads} * width, width};
  }
  bool IsDense() const {
    return rows == 0 || heads == 0 ||
           ((head_stride == width || heads == 1) && (row_stride == int64_t{heads} * width || rows == 1));
  }
  int64_t elements() const { return rows * heads * width; }
  int64_t bytes() const { return elements() * static_cast<int64_t>(SizeInBytes(dtype)); }
  // Address of element (row, head, 0).
  Pointer At(int64_t row, int head) const {
    return static_cast<Byte*>(data) + (row * row_stride + head * head_stride) * static_cast<int64_t>(SizeInBytes(dtype));
  }
  operator BasicTensorView<const Byte>() const
    requires(!std::is_const_v<Byte>)
  {
    return {data, dtype, space, rows, heads, width, row_stride, head_stride};
  }
};
using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

}  // namespace tessera
