// What decoding on a tile unit multiplies: queries and values packed into pairs, keys where they lie.
#if HWY_TARGET == HWY_AVX3
#if defined(TESSERA_KERNELS_CPU_DECODE_OPERANDS_AMX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_DECODE_OPERANDS_AMX_INL_H_
#undef TESSERA_KERNELS_CPU_DECODE_OPERANDS_AMX_INL_H_
#else
#define TESSERA_KERNELS_CPU_DECODE_OPERANDS_AMX_INL_H_
#endif

#include <hwy/highway.h>
#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/decode_amx.h"
#include "kernels/cpu/product_amx-inl.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
namespace tessera::cpu::HWY_NAMESPACE::amx {

HWY_INLINE uint32_t* ScratchPairs(const DecodeState& state, size_t offset) {
  return reinterpret_cast<uint32_t*>(state.scratch + offset);
}

// Transposes the queries, which are a product's right operand: 16 x 16 dwords at about 70 cycles, for 128 of width 576
// 11,000 a chunk of at least 1,024 keys, whose products take 280,000.
inline void PackQueries(const DecodeState& state, int pairs) {
  const DecodeTileLayout layout(state);
  const auto* const rows = reinterpret_cast<const uint16_t*>(state.query);
  bfloat16::PackColumns(
      [&](int pair) HWY_ATTR -> const void* {
        return pair < pairs ? rows + static_cast<size_t>(pair) * state.qk_stride : nullptr;
      },
      state.qk_width, layout.depth, layout.query_stride, ScratchPairs(state, layout.query));
}

// Up to two tiles of keys, `stride` dwords apart.
struct KeyRows {
  const uint32_t* first;  // aligned or not
  size_t stride;
};

// The tiles of keys from `base` on. A tile load takes rows at any equal distance, so keys are read where they lie as
// long as they fill their tiles and no row ends inside a register's: what follows it may be NaN.
HWY_INLINE KeyRows KeysAt(const DecodeState& state, const DecodeTileLayout& layout, const DecodeBlock& block, int base,
                          bool* in_place) {
  const int rows = std::min(block.count - base, 2 * kTileRows);
  const auto address = [&](int j) HWY_ATTR { return reinterpret_cast<uintptr_t>(block.key[base + j]); };
  *in_place = rows % kTileRows == 0 && state.qk_width == state.qk_stride;
  if (*in_place) {
    const uintptr_t distance = address(1) - address(0);
    // Products count strides in dwords, and forwards.
    bool equal = distance % sizeof(uint32_t) == 0 && distance <= UINT32_MAX;
    for (int j = 2; j < rows; ++j) equal &= address(j) - address(j - 1) == distance;
    if (equal) return {reinterpret_cast<const uint32_t*>(block.key[base]), distance / sizeof(uint32_t)};
  }
  *in_place = false;
  const auto depth = static_cast<size_t>(layout.depth);
  return {ScratchPairs(state, layout.key) + static_cast<size_t>(base) * depth, depth};
}

// Copies keys that cannot be read where they lie, padded with zeros; those missing in a tile are zero.
inline void LoadKeys(const DecodeState& state, const DecodeBlock& block, const DecodeBlock& /*next*/) {
  const DecodeTileLayout layout(state);
  for (int base = 0; base < block.count; base += 2 * kTileRows) {
    bool in_place;
    KeysAt(state, layout, block, base, &in_place);
    if (in_place) continue;
    uint32_t* to = ScratchPairs(state, layout.key) + static_cast<size_t>(base) * layout.depth;
    for (int j = base; j < base + 2 * kTileRows; ++j, to += layout.depth) {
      bfloat16::CopyRow(j < block.count ? block.key[j] : nullptr, state.qk_width, layout.depth, to);
    }
  }
}

// Packs kColumns columns of a block's values, one pair of keys after the other: columns at a time, because then they
// stay in the first-level cache until every pair's weights have met them.
class ValuePacker {
 public:
  ValuePacker(const DecodeState& state, const DecodeBlock& block) : block_(block), width_(state.v_width) {}

  // Columns from `first` on, to [keys / 2][kColumns].
  void Start(int first, uint32_t* to) {
    first_ = first;
    to_ = to;
    key_ = 0;
  }
  HWY_INLINE void Piece() {
    constexpr int kColumns = DecodeTileLayout::kColumns;
    // A row that is missing is zero, not just its weight: 0 * inf is NaN.
    const __m512i even = Load(key_), odd = Load(key_ + 1);
    _mm512_store_si512(to_, interleave_.Low(even, odd));
    _mm512_store_si512(to_ + kColumns / 2, interleave_.High(even, odd));
    key_ += 2;
    to_ += kColumns;
  }

 private:
  HWY_INLINE __m512i Load(int key) const {
    if (key >= block_.count) return _mm512_setzero_si512();
    return bfloat16::LoadPairs(reinterpret_cast<const uint16_t*>(block_.value[key]), first_ / 2, width_);
  }

  const DecodeBlock& block_;
  const int width_;
  const bfloat16::Interleaver interleave_;
  int first_ = 0, key_ = 0;
  uint32_t* to_ = nullptr;
};

// Asks for the lines of the next block, spread evenly over `turns` calls: asked for in bursts, lines fill the queue of
// outstanding misses and hold up what comes behind. They go to the second-level cache: a block of 256 latent rows is
// 288 KiB, six times the first.
class Ahead {
 public:
  Ahead(const DecodeState& state, const DecodeBlock& next, int64_t turns)
      : next_(next),
        turns_(turns),
        key_bytes_(2 * state.qk_width),
        value_bytes_(state.value_in_key ? 0 : 2 * state.v_width),
        lines_(int64_t{next.count} * ((key_bytes_ + kLine - 1) / kLine + (value_bytes_ + kLine - 1) / kLine)) {}

  HWY_INLINE void Ask() {
    for (credit_ += lines_; credit_ >= turns_; credit_ -= turns_) Next();
  }

 private:
  static constexpr int kLine = 64;

  HWY_INLINE void Next() {
    const std::byte* const row = in_value_ ? next_.value[row_] : next_.key[row_];
    _mm_prefetch(reinterpret_cast<const char*>(row + byte_), _MM_HINT_T1);
    byte_ += kLine;
    if (byte_ < (in_value_ ? value_bytes_ : key_bytes_)) return;
    byte_ = 0;
    in_value_ = !in_value_ && value_bytes_ > 0;
    if (!in_value_) ++row_;
  }

  const DecodeBlock& next_;
  const int64_t turns_;
  const int key_bytes_, value_bytes_;
  const int64_t lines_;
  int64_t credit_ = 0;
  int row_ = 0, byte_ = 0;
  bool in_value_ = false;
};

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
