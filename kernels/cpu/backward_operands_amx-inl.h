// What the tile products of the backward pass read, packed.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_BACKWARD_OPERANDS_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_BACKWARD_OPERANDS_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_BACKWARD_OPERANDS_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_BACKWARD_OPERANDS_AMX_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/backward_amx.h"
#include "kernels/cpu/backward_rows-inl.h"
#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/product_amx-inl.h"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

using bfloat16::kLanes;
inline constexpr int kUnitRows = TileBackwardLayout::kUnitRows;
static_assert(kUnitRows == kGroup && kKeyBlock == 2 * kGroup);

// to[c][r] = from[r][c] for whole tiles of dwords.
HWY_INLINE void TransposeDwords(const void* from, int from_stride, int rows, int columns, void* to, int to_stride) {
  const auto* const source = static_cast<const uint32_t*>(from);
  auto* const target = static_cast<uint32_t*>(to);
  for (int r = 0; r < rows; r += kLanes) {
    for (int c = 0; c < columns; c += kLanes) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) v[k] = _mm512_load_si512(source + (r + k) * from_stride + c);
      bfloat16::Transpose(v);
#pragma GCC unroll 16
      for (int k = 0; k < 16; ++k) _mm512_store_si512(target + (c + k) * to_stride + r, v[k]);
    }
  }
}

// Packs the 32 rows row(0), row(1), ..., null where there is none, as [16][stride] pairs of rows i and i + 16. Rows
// that hold NaN or infinity are packed as zeros and get their bit in the result: a product takes them along for
// everyone, with a factor of zero for those that may not see them, and they are better added apart.
template <class Row>
HWY_INLINE uint32_t PackGroup(const bfloat16::Interleaver& interleave, const Row& row, int width, int stride,
                              uint32_t* to) {
  uint32_t poison = 0;
  for (int i = 0; i < kTileRows; ++i, to += stride) {
    const void* halves[2] = {row(i), row(i + kTileRows)};
    if (HWY_LIKELY(bfloat16::PackTwoRows(interleave, halves[0], halves[1], width, stride, to))) continue;
    for (int k = 0; k < 2; ++k) {
      if (bfloat16::PackTwoRows(interleave, halves[k], nullptr, width, stride, to)) continue;
      poison |= uint32_t{1} << (i + k * kTileRows);
      halves[k] = nullptr;
    }
    bfloat16::PackTwoRows(interleave, halves[0], halves[1], width, stride, to);
  }
  return poison;
}

// A thread's working arrays.
class TileOperands {
 public:
  TileOperands(const AttendBackwardArgs& args, const TileBackwardLayout& layout, float* data)
      : args_(args), layout_(layout), data_(data) {}
  const TileBackwardLayout& layout() const { return layout_; }

  uint32_t* QueryColumns(int unit) const { return At(layout_.query_columns, unit, layout_.qk_depth * kUnitRows); }
  uint32_t* OutputGradientColumns(int unit) const {
    return At(layout_.output_gradient_columns, unit, layout_.v_depth * kUnitRows);
  }
  uint32_t* QueryPairs(int unit) const { return At(layout_.query_pairs, unit, kTileRows * layout_.qk_stride); }
  uint32_t* OutputGradientPairs(int unit) const {
    return At(layout_.output_gradient_pairs, unit, kTileRows * layout_.v_stride);
  }
  float* QueryGradient(int unit) const { return Floats(layout_.query_gradient, unit, layout_.qk_stride * kUnitRows); }
  float* Lse(int unit) const { return Floats(layout_.lse, unit, kUnitRows); }
  float* Delta(int unit) const { return Floats(layout_.delta, unit, kUnitRows); }
  // Rows of the unit's query [0] and output gradient [1] that are not finite.
  uint32_t* Poison(int unit) const { return At(layout_.poison, unit, 2); }
  uint32_t* Key() const { return At(layout_.key, 0, 0); }
  uint32_t* Value() const { return At(layout_.value, 0, 0); }
  // Of the block with this parity, as are those below.
  uint32_t* KeyColumns(int block) const { return At(layout_.key_columns, block, layout_.qk_stride * kGroup); }
  float* KeyGradient(int block) const { return Floats(layout_.key_gradient, block, kKeyBlock * layout_.qk_stride); }
  float* ValueGradient(int block) const { return Floats(layout_.value_gradient, block, kKeyBlock * layout_.v_stride); }
  float* Scores(int parity) const { return Floats(layout_.score, parity, 2 * kKeyBlock * kUnitRows); }
  float* Gradients(int parity) const { return Scores(parity) + kKeyBlock * kUnitRows; }
  uint32_t* Probability(int pass, int unit) const {
    return At(layout_.weight, (pass & 1) * TileBackwardLayout::kPassUnits + unit, kKeyBlock * kUnitRows);
  }
  uint32_t* ScoreGradient(int pass, int unit) const { return Probability(pass, unit) + kKeyBlock * kTileRows; }
  uint32_t* GradientPairs(int parity) const { return At(layout_.weight_pairs, parity, kGroup * kUnitRows); }
  float* Rows() const { return Floats(layout_.rows, 0, 0); }

  void LoadUnit(int unit, const BackwardRows& rows) const {
    const int first = unit * kUnitRows;
    const auto query = [&](int r) HWY_ATTR { return rows.Query(first + r); };
    const auto gradient = [&](int r) HWY_ATTR { return rows.OutputGradient(first + r); };
    const int qk_width = args_.query.width, v_width = args_.value.width;
    bfloat16::PackColumns(query, qk_width, layout_.qk_depth, kUnitRows, QueryColumns(unit));
    bfloat16::PackColumns(gradient, v_width, layout_.v_depth, kUnitRows, OutputGradientColumns(unit));
    Poison(unit)[0] = PackGroup(interleave_, query, qk_width, layout_.qk_stride, QueryPairs(unit));
    Poison(unit)[1] = PackGroup(interleave_, gradient, v_width, layout_.v_stride, OutputGradientPairs(unit));
    std::memset(QueryGradient(unit), 0, static_cast<size_t>(layout_.qk_stride) * kUnitRows * sizeof(float));
  }

  // Packs keys and values [row, row + count). Bit j of the result: key j is not finite.
  uint64_t LoadBlock(int block, int64_t row, int count, int kv_head) const {
    const auto key = [&](int j)
                         HWY_ATTR -> const void* { return j < count ? args_.key.At(row + j, kv_head) : nullptr; };
    uint32_t* const pairs = At(layout_.staging, 0, 0);
    uint64_t poison = 0;
    for (int g = 0; g < 2; ++g) {
      const uint32_t bits = PackGroup(
          interleave_, [&](int j) HWY_ATTR { return key(g * kGroup + j); }, args_.key.width, layout_.qk_stride, pairs);
      poison |= uint64_t{bits} << g * kGroup;
      TransposeDwords(pairs, layout_.qk_stride, kTileRows, layout_.qk_stride, KeyColumns(block) + g * kTileRows,
                      kGroup);
    }
    for (int j = 0; j < kKeyBlock; ++j) {
      bfloat16::CopyRow(key(j), args_.key.width, layout_.qk_depth, Key() + j * layout_.qk_depth);
      bfloat16::CopyRow(j < count ? args_.value.At(row + j, kv_head) : nullptr, args_.value.width, layout_.v_depth,
                        Value() + j * layout_.v_depth);
    }
    bfloat16::PrefetchRows(args_.key, row + kKeyBlock, kv_head);
    bfloat16::PrefetchRows(args_.value, row + kKeyBlock, kv_head);
    return poison;
  }

  // dQ / scale of the unit row by row, [kUnitRows][qk_stride].
  const float* QueryGradientRows(int unit) const {
    float* const rows = Floats(layout_.staging, 0, 0);
    TransposeDwords(QueryGradient(unit), kUnitRows, layout_.qk_stride, kUnitRows, rows, layout_.qk_stride);
    return rows;
  }

 private:
  float* Floats(size_t array, int i, int size) const { return data_ + array + static_cast<size_t>(i) * size; }
  uint32_t* At(size_t array, int i, int size) const { return reinterpret_cast<uint32_t*>(Floats(array, i, size)); }

  const AttendBackwardArgs& args_;
  const TileBackwardLayout layout_;
  float* const data_;
  const bfloat16::Interleaver interleave_;
};

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#endif
#endif  // HWY_AVX3
