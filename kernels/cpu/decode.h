// What the instruction-set-specific code of decoding is asked to do: fold blocks of cached rows into (query row, head)
// pairs. Which pair meets which block is decided once, in decode_kernel.cc; here every pair meets the whole block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/decode.h"

namespace tessera::cpu {

// Cached rows that are loaded together. Converted to fp32 and 576 wide they take 144 KiB of the second-level cache.
inline constexpr int kDecodeKeys = 64;
// The most that an instruction set may ask for at a time, see DecodeInstructionSet::block_keys.
inline constexpr int kMostDecodeKeys = 256;

// Widths in memory are padded to whole 64-byte vectors of bf16.
inline constexpr int kDecodePadding = 32;

constexpr int PaddedWidth(int width) {
  return (width + kDecodePadding - 1) / kDecodePadding * kDecodePadding;
}

// Addresses of rows, none of which need be aligned.
class DecodeRows {
 public:
  DecodeRows() = default;
  DecodeRows(const std::byte* const* rows, int64_t offset) : rows_(rows), offset_(offset) {}
  const std::byte* operator[](int j) const { return rows_[j] + offset_; }
  // From row j on.
  DecodeRows From(int j) const { return {rows_ + j, offset_}; }

 private:
  const std::byte* const* rows_ = nullptr;
  int64_t offset_ = 0;  // bytes
};

// `count` cached rows of one key/value head.
struct DecodeHeadBlock {
  int count = 0;
  DecodeRows key, value;
};

// The same `count` cached rows of some key/value heads: their addresses for the first one, and how far it is from one
// to the next.
struct DecodeBlock {
  int count = 0;
  int heads = 1;
  int64_t key_head_stride = 0;  // bytes
  int64_t value_head_stride = 0;
  const std::byte* key[kMostDecodeKeys];
  const std::byte* value[kMostDecodeKeys];

  DecodeHeadBlock head(int h) const { return {count, {key, h * key_head_stride}, {value, h * value_head_stride}}; }
};

// Pairs that see a block, of each of its heads: a head's pairs [first, first + count).
struct DecodeRun {
  int first = 0;
  int count = 0;
};

// One thread's working memory and the options of the call. Everything is aligned to 64 bytes.
struct DecodeState {
  DType dtype = DType::kFloat32;
  int qk_width = 0;
  int v_width = 0;
  int qk_stride = 0;  // padded
  int v_stride = 0;
  bool value_in_key = false;
  float query_factor = 1.0f;  // -1, 0 or 1: the scale's sign, moved to the queries so that `scale` is positive
  float scale = 1.0f;
  float soft_cap = 0.0f;

  int most_pairs = 1;          // that there is room for
  std::byte* query = nullptr;  // [pairs][qk_stride], fp32 or the cache's dtype
  float* key = nullptr;        // [kDecodeKeys][qk_stride] fp32, or unused
  float* value = nullptr;      // [kDecodeKeys][v_stride] values, in the form that the products read
  float* score = nullptr;      // [pairs, rounded up to kDecodeRows][kDecodeKeys]
  float* scratch = nullptr;    // [DecodeInstructionSet::scratch_floats], laid out by the instruction set

  // Accumulators of the chunk in hand. A pair's output is unnormalised: sum over keys of exp(s - max) value.
  float* output = nullptr;  // [pairs][v_stride]
  float* max = nullptr;     // [pairs], reference scores
  float* sum = nullptr;     // [pairs][kDecodeLanes], partial sums of exp(s - max)
  float* weight = nullptr;  // [pairs][kDecodeLanes], the same of the factors that values were multiplied by
};

inline constexpr int kDecodeLanes = 16;
inline constexpr int kDecodeRows = 6;  // pairs of a register tile

struct DecodeInstructionSet {
  int64_t highway_target = 0;
  // Converts one query row to pair `pair`'s place in the state.
  void (*load_query)(const DecodeState& state, int pair, const void* row) = nullptr;
  // Folds the rows of each head into its pairs of every run: pair p of head h is pair h * head_pairs + p of the state.
  // Asks for the rows of `next`, which come behind them and may be none, in advance.
  void (*fold)(const DecodeState& state, const DecodeBlock& block, const DecodeBlock& next, int head_pairs,
               std::span<const DecodeRun> runs) = nullptr;
  // to[i] += factor * from[i] for i < width, a multiple of kDecodePadding.
  void (*add)(float factor, const float* from, int width, float* to) = nullptr;

  bool bfloat16_dot = false;  // needs HasBFloat16Dot() and takes bf16 only
  bool amx = false;           // needs HasAmx() too
  int block_keys = kDecodeKeys;
  // The rest may be null. Floats of DecodeState::scratch for `state.most_pairs` pairs of these widths.
  size_t (*scratch_floats)(const DecodeState& state) = nullptr;
  // Bracket all that a thread does with the others.
  void (*begin)() = nullptr;
  void (*end)() = nullptr;
  // Once queries 0 to `pairs` - 1 are loaded, before blocks are folded into them.
  void (*pack_queries)(const DecodeState& state, int pairs) = nullptr;
};

// Folds head by head: load(rows, following) converts a head's rows where products do not read them in place, then
// fold(rows, following, first, count) folds them into pairs [first, first + count) for every run. `following` are rows
// to ask for, each in one call.
template <class Load, class Fold>
void FoldHeadByHead(const DecodeBlock& block, const DecodeBlock& next, int head_pairs, std::span<const DecodeRun> runs,
                    const Load& load, const Fold& fold) {
  for (int head = 0; head < block.heads; ++head) {
    const DecodeHeadBlock rows = block.head(head);
    const DecodeHeadBlock following = head + 1 < block.heads ? block.head(head + 1) : next.head(0);
    load(rows, following);
    for (const DecodeRun& run : runs) {
      fold(rows, &run == &runs.front() ? following : DecodeHeadBlock{}, head * head_pairs + run.first, run.count);
    }
  }
}

// By run-time dispatch, every instruction set of every architecture, best first; null where it is not compiled in.
std::span<const DecodeInstructionSet> DecodeInstructionSets();

// For processors with bf16 dot products; null pointers where not compiled in.
const DecodeInstructionSet& DecodeBFloat16InstructionSet();
// Whether this processor has them.
bool HasBFloat16Dot();
// Flops of `steps` steps of nothing but dot products in registers; only where HasBFloat16Dot().
double BFloat16DotPeak(int64_t steps, float* sink);

std::vector<const DecodeKernel*> Decoders();
// A decoder of its own by the given code; for tests of code that no processor here runs as it is.
std::unique_ptr<const DecodeKernel> MakeDecoder(const DecodeInstructionSet& set, std::string name);

}  // namespace tessera::cpu
