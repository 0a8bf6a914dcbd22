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
HWY_INLINE KeyRows KeysAt(const DecodeState& state, const DecodeTileLayout& layout, const DecodeHeadBlock& block,
                          int base, bool* in_place) {
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
inline void LoadKeys(const DecodeState& state, const DecodeHeadBlock& block) {
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

// Packs kColumns columns of a block's values, a few keys at a time: columns, because then they stay in the first-level
// cache until every pair's weights have met them.
class ValuePacker {
 public:
  ValuePacker(const DecodeState& state, const DecodeHeadBlock& block) : block_(block), width_(state.v_width) {}

  // Calls of Piece() that a block takes.
  static int Pieces(int count) {
    return (count + DecodeTileLayout::kStepKeys - 1) / DecodeTileLayout::kStepKeys * kPiecesPerStep;
  }

  // Columns from `first` on, to [keys / 2][kColumns].
  void Start(int first, uint32_t* to) {
    offset_ = static_cast<size_t>(first) * 2;
    const int left = width_ - first;
    present_ = left >= kColumns ? ~__mmask32{0} : (__mmask32{1} << std::max(left, 0)) - 1;
    to_ = to;
    key_ = 0;
  }
  HWY_NOINLINE void Piece() {
    // Of this object the loops use copies: the compiler must take each store for one to its members.
    const DecodeRows rows = block_.value.From(key_);
    const size_t offset = offset_;
    if (HWY_LIKELY(key_ + kPieceKeys <= block_.count && present_ == ~__mmask32{0})) {
      Pack(interleave_, to_, [=](int key) HWY_ATTR { return _mm512_loadu_si512(rows[key] + offset); });
    } else {
      // A row that is missing is zero, not just its weight: 0 * inf is NaN.
      const int count = block_.count - key_;
      const __mmask32 present = present_;
      Pack(interleave_, to_, [=](int key) HWY_ATTR {
        return key < count ? _mm512_maskz_loadu_epi16(present, rows[key] + offset) : _mm512_setzero_si512();
      });
    }
    key_ += kPieceKeys;
    to_ += kPieceKeys / 2 * kColumns;
  }

 private:
  static constexpr int kColumns = DecodeTileLayout::kColumns;
  static constexpr int kPieceKeys = 8;
  static constexpr int kPiecesPerStep = DecodeTileLayout::kStepKeys / kPieceKeys;

  template <class Load>
  static HWY_INLINE void Pack(const bfloat16::Interleaver interleave, uint32_t* HWY_RESTRICT to, const Load& load) {
#pragma GCC unroll 4
    for (int i = 0; i < kPieceKeys; i += 2, to += kColumns) {
      const __m512i even = load(i), odd = load(i + 1);
      _mm512_store_si512(to, interleave.Low(even, odd));
      _mm512_store_si512(to + kColumns / 2, interleave.High(even, odd));
    }
  }

  const DecodeHeadBlock& block_;
  const int width_;
  const bfloat16::Interleaver interleave_;
  size_t offset_ = 0;  // bytes
  __mmask32 present_ = 0;
  int key_ = 0;
  uint32_t* to_ = nullptr;
};

// Asks for the lines of the next block, but for the last three at most, spread evenly over `turns` calls: asked for in
// bursts, lines fill the queue of outstanding misses and hold up what comes behind. One by one, each would cost a call.
// They go to the second-level cache: a block of 256 latent rows is 288 KiB, six times the first.
class Ahead {
 public:
  Ahead(const DecodeState& state, const DecodeHeadBlock& next, int64_t turns)
      : next_(next),
        turns_(turns),
        key_bytes_(2 * state.qk_width),
        value_bytes_(state.value_in_key ? 0 : 2 * state.v_width),
        lines_(int64_t{next.count} * (Lines(key_bytes_) + Lines(value_bytes_))) {}

  HWY_INLINE void Ask() {
    credit_ += lines_;
    if (credit_ >= kBurst * turns_) AskLines();
  }

 private:
  static constexpr int kLine = 64;
  static constexpr int kBurst = 4;
  static int64_t Lines(int bytes) { return (bytes + kLine - 1) / kLine; }

  HWY_NOINLINE void AskLines() {
    const char* line = line_;
    do {
      credit_ -= kBurst * turns_;
      for (int i = 0; i < kBurst; ++i, line += kLine) {
        if (line >= end_) line = NextRow();
        _mm_prefetch(line, _MM_HINT_T1);
      }
    } while (credit_ >= kBurst * turns_);
    line_ = line;
  }
  // Key rows and value rows by turns, as they are read.
  const char* NextRow() {
    const bool value = value_next_;
    const auto* const row = reinterpret_cast<const char*>(value ? next_.value[row_] : next_.key[row_]);
    end_ = row + (value ? value_bytes_ : key_bytes_);
    value_next_ = !value && value_bytes_ > 0;
    if (!value_next_) ++row_;
    return row;
  }

  const DecodeHeadBlock& next_;
  const int64_t turns_;
  const int key_bytes_, value_bytes_;
  const int64_t lines_;
  int64_t credit_ = 0;
  const char* line_ = nullptr;  // of the row in hand
  const char* end_ = nullptr;
  int row_ = 0;
  bool value_next_ = false;
};

}  // namespace tessera::cpu::HWY_NAMESPACE::amx
HWY_POP_ATTRIBUTES
#pragma GCC diagnostic pop
#endif
#endif  // HWY_AVX3
