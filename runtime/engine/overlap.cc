#include "runtime/engine/overlap.h"

#include <algorithm>
#include <cstdint>

namespace tessera {
namespace {

__extension__ using Wide = __int128;  // products of two 64-bit distances

Wide FloorDivide(Wide a, Wide b) {  // b > 0
  const Wide quotient = a / b;
  return a % b < 0 ? quotient - 1 : quotient;
}

// Sum of floor((offset + i * step) / divisor) for i in [0, count), by Euclid's algorithm; step >= 0, divisor > 0.
Wide FloorSum(Wide count, Wide divisor, Wide step, Wide offset) {
  Wide sum = 0;
  // One round takes whole multiples of the divisor out of step and offset, then exchanges the axes of the lattice.
  while (count > 0) {
    const Wide whole_offset = FloorDivide(offset, divisor);
    sum += count * whole_offset + count * (count - 1) / 2 * (step / divisor);
    offset -= whole_offset * divisor;
    step %= divisor;
    const Wide highest = step * count + offset;
    if (highest < divisor) break;
    count = highest / divisor;
    offset = highest % divisor;
    std::swap(divisor, step);
  }
  return sum;
}

// Runs of `length` bytes that start at `first`, `first + stride`, ...
struct Runs {
  Wide first = 0;
  Wide stride = 1;
  Wide count = 0;
  Wide length = 0;
};

// Runs i and j meet when low <= i * one.stride - j * other.stride <= high. For the j whose i may lie in range, the
// number of such i is a difference of two floors.
bool Meet(const Runs& one, const Runs& other) {
  const Wide distance = other.first - one.first;
  const Wide low = distance - one.length + 1;
  const Wide high = distance + other.length - 1;
  const Wide last = (one.count - 1) * one.stride;
  // high + j * stride >= 0 and low + j * stride <= last bound j.
  const Wide begin = std::max<Wide>(0, -FloorDivide(high, other.stride));
  const Wide end = std::min<Wide>(other.count, FloorDivide(last - low, other.stride) + 1);
  if (begin >= end) return false;
  const Wide shift = begin * other.stride;
  return FloorSum(end - begin, one.stride, other.stride, high + shift) >
         FloorSum(end - begin, one.stride, other.stride, low - 1 + shift);
}

// The rows of one head in bytes, measured from `origin`; heads without gaps are one.
struct Shape {
  explicit Shape(const ConstTensorView& view) : bytes(static_cast<Wide>(SizeInBytes(view.dtype))) {
    const bool joined = view.heads == 1 || view.head_stride == view.width;
    heads = joined ? 1 : view.heads;
    head_stride = joined ? 0 : view.head_stride;
    width = Wide{view.width} * (joined ? view.heads : 1);
  }
  Runs RowsOf(const ConstTensorView& view, int head) const {
    const Wide first = static_cast<Wide>(reinterpret_cast<uintptr_t>(view.data)) + head * head_stride * bytes;
    if (view.row_stride == 0) return {first, 1, 1, width * bytes};  // all rows are the same memory
    return {first, view.row_stride * bytes, view.rows, width * bytes};
  }
  Wide bytes = 1, head_stride = 0, width = 0;
  int heads = 1;
};

bool RangesMeet(const ConstTensorView& one, const ConstTensorView& other) {
  const auto end = [](const ConstTensorView& view) {
    return static_cast<const std::byte*>(view.At(view.rows - 1, view.heads - 1)) + view.width * SizeInBytes(view.dtype);
  };
  return static_cast<const std::byte*>(one.data) < end(other) && static_cast<const std::byte*>(other.data) < end(one);
}

}  // namespace

bool Overlap(const ConstTensorView& one, const ConstTensorView& other) {
  if (one.elements() == 0 || other.elements() == 0 || !RangesMeet(one, other)) return false;
  const Shape shape(one), other_shape(other);
  for (int head = 0; head < shape.heads; ++head) {
    for (int other_head = 0; other_head < other_shape.heads; ++other_head) {
      if (Meet(shape.RowsOf(one, head), other_shape.RowsOf(other, other_head))) return true;
    }
  }
  return false;
}

}  // namespace tessera
