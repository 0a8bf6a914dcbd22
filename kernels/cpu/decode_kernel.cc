// Decoding on the CPU: threads take chunks of keys, each folds into partial results of its own, and these are merged in
// the order of the keys.
#include <hwy/aligned_allocator.h>
#include <hwy/targets.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "kernels/attention.h"
#include "kernels/cpu/attend.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/decode_amx.h"
#include "kernels/cpu/decode_plan.h"
#include "kernels/decode_check.h"

namespace tessera::cpu {
namespace {

// Below every finite score, yet finite: see softmax-inl.h.
constexpr float kNoMax = std::numeric_limits<float>::lowest();
constexpr int kMaxWidth = 4096;

using Floats = hwy::AlignedFreeUniquePtr<float[]>;

// What chunks leave for the merge. A pair of a chunk that saw nothing has sum 0.
struct Partials {
  Floats output;  // [partials][v_stride], unnormalised
  Floats max;     // [partials]
  Floats sum;     // [partials][kDecodeLanes]
  Floats weight;  // [partials][kDecodeLanes]

  Partials(size_t count, int v_stride)
      : output(hwy::AllocateAligned<float>(count * v_stride)),
        max(hwy::AllocateAligned<float>(count)),
        sum(hwy::AllocateAligned<float>(count * kDecodeLanes)),
        weight(hwy::AllocateAligned<float>(count * kDecodeLanes)) {}
  bool ok() const { return output != nullptr && max != nullptr && sum != nullptr && weight != nullptr; }
};

double SumLanes(const float* lanes) {
  double sum = 0;
  for (int i = 0; i < kDecodeLanes; ++i) sum += static_cast<double>(lanes[i]);
  return sum;
}

// Fills blocks with the addresses of consecutive cached rows, page by page.
class BlockReader {
 public:
  // Up to `most` rows a block.
  BlockReader(const DecodeArgs& args, const DecodePairs& pairs, Range keys, int most)
      : cache_(args.cache),
        pages_(pairs.sequence->pages),
        kv_head_(pairs.kv_head),
        most_(most),
        next_(keys.begin),
        end_(keys.end) {}

  void Read(DecodeBlock* block) {
    block->count = 0;
    while (next_ < end_ && block->count < most_) {
      const int64_t in_page = cache_.page_tokens - next_ % cache_.page_tokens;
      const auto rows = static_cast<int>(std::min({in_page, end_ - next_, int64_t{most_ - block->count}}));
      const std::byte* key = KeyAt(cache_, pages_, next_, kv_head_);
      const std::byte* value = ValueAt(cache_, pages_, next_, kv_head_);
      for (int i = 0; i < rows; ++i, key += cache_.key_row_stride, value += cache_.value_row_stride) {
        block->key[block->count + i] = key;
        block->value[block->count + i] = value;
      }
      block->count += rows;
      next_ += rows;
    }
  }

 private:
  const CacheLayer& cache_;
  std::span<const int32_t> pages_;
  int kv_head_;
  int most_;
  int64_t next_, end_;
};

class CpuDecoder final : public DecodeKernel {
 public:
  CpuDecoder(const DecodeInstructionSet& set, std::string name) : set_(set), name_(std::move(name)) {}
  std::string_view name() const override { return name_; }

  std::string WhyNot(const DecodeTraits& traits) const override {
    if ((hwy::SupportedTargets() & set_.highway_target) == 0) {
      return absl::StrCat("this processor has no ", hwy::TargetName(set_.highway_target));
    }
    if (set_.amx && !HasAmx()) return "this processor or system has no AMX for bf16";
    if (set_.bfloat16_dot) {
      if (!HasBFloat16Dot()) return "this processor has no AVX-512 BF16";
      if (traits.dtype != DType::kBFloat16) {
        return absl::StrCat("it multiplies bf16, not ", std::string(Name(traits.dtype)));
      }
    }
    for (int width : {traits.qk_width, traits.v_width}) {
      if (width < 1 || width > kMaxWidth) return absl::StrCat("widths must lie in [1, ", kMaxWidth, "]");
    }
    return "";
  }

  Status Decode(const DecodeArgs& args) const override {
    TESSERA_RETURN_IF_ERROR(CheckDecodeArgs(args));
    if (const std::string reason = WhyNot(TraitsOf(args)); !reason.empty()) {
      return absl::FailedPreconditionError(absl::StrCat(name_, ": ", reason));
    }
    for (const DecodeWave& wave : PlanDecode(args)) {
      TESSERA_RETURN_IF_ERROR(Run(args, wave));
      if (IsSet(args.cancelled)) return absl::CancelledError(absl::StrCat(name_, ": cancelled"));
    }
    return absl::OkStatus();
  }

 private:
  DecodeState StateOf(const DecodeArgs& args) const {
    DecodeState state;
    state.dtype = args.cache.dtype;
    state.qk_width = args.cache.qk_width;
    state.v_width = args.cache.v_width;
    state.qk_stride = PaddedWidth(state.qk_width);
    state.v_stride = PaddedWidth(state.v_width);
    state.value_in_key = TraitsOf(args).value_in_key;
    state.query_factor = args.scale < 0.0f ? -1.0f : args.scale == 0.0f ? 0.0f : 1.0f;
    state.scale = args.scale == 0.0f ? 1.0f : std::abs(args.scale);
    state.soft_cap = args.soft_cap;
    return state;
  }

  Status Run(const DecodeArgs& args, const DecodeWave& wave) const {
    DecodeState prototype = StateOf(args);
    // At least one: Highway ends the process when asked for nothing.
    const Partials partials(std::max<size_t>(1, wave.partials), prototype.v_stride);
    for (const DecodePairs& pairs : wave.pairs) prototype.most_pairs = std::max(prototype.most_pairs, pairs.pairs());
    const size_t query = static_cast<size_t>(prototype.most_pairs) * prototype.qk_stride;
    const size_t key = static_cast<size_t>(kDecodeKeys) * prototype.qk_stride;
    const size_t value = static_cast<size_t>(kDecodeKeys) * prototype.v_stride;
    const size_t score = size_t{kDecodeRows} * kDecodeKeys;
    const size_t scratch = set_.scratch_floats != nullptr ? set_.scratch_floats(prototype) : 0;
    const size_t floats = query + key + value + score + scratch;
    std::atomic<bool> failed = !partials.ok();
    const int threads = static_cast<int>(std::clamp<size_t>(wave.chunks.size(), 1, args.threads));
#pragma omp parallel num_threads(threads)
    {
      const Floats arena = hwy::AllocateAligned<float>(floats);
      if (arena == nullptr) failed = true;
      DecodeState state = prototype;
      state.query = reinterpret_cast<std::byte*>(arena.get());
      state.key = arena.get() + query;
      state.value = state.key + key;
      state.score = state.value + value;
      state.scratch = state.score + score;
      if (set_.begin != nullptr) set_.begin();
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < wave.chunks.size(); ++i) {
        if (!failed && !IsSet(args.cancelled)) Fold(args, wave, wave.chunks[i], partials, state);
      }
#pragma omp for schedule(static)
      for (size_t i = 0; i < wave.pairs.size(); ++i) {
        for (int pair = 0; pair < wave.pairs[i].pairs(); ++pair) {
          if (!failed && !IsSet(args.cancelled)) Merge(args, wave, wave.pairs[i], pair, partials, state);
        }
      }
      if (set_.end != nullptr) set_.end();
    }
    if (!failed) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat(name_, ": no memory for partial results"));
  }

  void Fold(const DecodeArgs& args, const DecodeWave& wave, const DecodeChunk& chunk, const Partials& partials,
            DecodeState& state) const {
    const DecodePairs& pairs = wave.pairs[chunk.pairs];
    const size_t count = pairs.pairs();
    state.output = partials.output.get() + chunk.first_partial * state.v_stride;
    state.max = partials.max.get() + chunk.first_partial;
    state.sum = partials.sum.get() + chunk.first_partial * kDecodeLanes;
    state.weight = partials.weight.get() + chunk.first_partial * kDecodeLanes;
    std::memset(state.output, 0, count * state.v_stride * sizeof(float));
    std::fill_n(state.max, count, kNoMax);
    std::fill_n(state.sum, count * kDecodeLanes, 0.0f);
    std::fill_n(state.weight, count * kDecodeLanes, 0.0f);
    for (int pair = 0; pair < pairs.pairs(); ++pair) {
      set_.load_query(state, pair, args.query.At(RowOf(pairs, pair), HeadOf(pairs, pair)));
    }
    if (set_.pack_queries != nullptr) set_.pack_queries(state, pairs.pairs());
    for (const DecodeSegment& segment : Segments(pairs, chunk.keys)) {
      BlockReader reader(args, pairs, segment.keys, set_.block_keys);
      DecodeBlock blocks[2];
      static constexpr DecodeBlock nothing{};
      int now = 0;
      reader.Read(&blocks[now]);
      while (blocks[now].count > 0 && !IsSet(args.cancelled)) {
        reader.Read(&blocks[1 - now]);
        set_.load_block(state, blocks[now], blocks[1 - now]);
        for (const DecodeSegment::Run& run : segment.runs) {
          const DecodeBlock& next = &run == &segment.runs.front() ? blocks[1 - now] : nothing;
          set_.fold(state, blocks[now], next, run.first, run.count);
        }
        now = 1 - now;
      }
    }
  }

  void Merge(const DecodeArgs& args, const DecodeWave& wave, const DecodePairs& pairs, int pair,
             const Partials& partials, const DecodeState& state) const {
    float* const merged = state.value;  // of this thread, free by now and long enough
    float max = kNoMax;
    for (size_t i = 0; i < pairs.chunks(); ++i) {
      max = std::max(max, partials.max[wave.chunks[pairs.first_chunk + i].first_partial + pair]);
    }
    std::memset(merged, 0, state.v_stride * sizeof(float));
    double sum = 0, weight = 0;
    for (size_t i = 0; i < pairs.chunks(); ++i) {
      const size_t partial = wave.chunks[pairs.first_chunk + i].first_partial + pair;
      const float factor = std::exp(partials.max[partial] - max);
      sum += factor * SumLanes(partials.sum.get() + partial * kDecodeLanes);
      weight += factor * SumLanes(partials.weight.get() + partial * kDecodeLanes);
      set_.add(factor, partials.output.get() + partial * state.v_stride, state.v_stride, merged);
    }
    const bool seen = sum != 0;  // also true for NaN
    float* const output = static_cast<float*>(args.output.At(RowOf(pairs, pair), HeadOf(pairs, pair)));
    const auto total = static_cast<float>(weight);
    for (int i = 0; i < state.v_width; ++i) output[i] = seen ? merged[i] / total : 0.0f;
    *static_cast<float*>(args.lse.At(RowOf(pairs, pair), HeadOf(pairs, pair))) =
        seen ? static_cast<float>(static_cast<double>(max) + std::log(sum)) : -std::numeric_limits<float>::infinity();
  }

  static int64_t RowOf(const DecodePairs& pairs, int pair) {
    return pairs.sequence->first_query_row + pairs.rows.begin + pair / pairs.heads.size();
  }
  static int HeadOf(const DecodePairs& pairs, int pair) {
    return pairs.heads.begin + pair % pairs.heads.size();
  }

  DecodeInstructionSet set_;
  std::string name_;
};

std::string NameOf(const DecodeInstructionSet& set) {
  std::string name = "cpu-";
  for (const char* c = hwy::TargetName(set.highway_target); *c != '\0'; ++c) {
    name += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  }
  return name;
}

}  // namespace

std::unique_ptr<const DecodeKernel> MakeDecoder(const DecodeInstructionSet& set, std::string name) {
  return std::make_unique<CpuDecoder>(set, std::move(name));
}

std::vector<const DecodeKernel*> Decoders() {
  static const std::vector<std::unique_ptr<const CpuDecoder>> decoders = [] {
    std::vector<std::unique_ptr<const CpuDecoder>> all;
    const DecodeInstructionSet& amx = DecodeAmxInstructionSet();
    // Before the dot products of AVX-512 for every shape, by the count in decode_amx-inl.h.
    if (amx.fold != nullptr) all.push_back(std::make_unique<CpuDecoder>(amx, "cpu-amx"));
    const DecodeInstructionSet& bfloat16 = DecodeBFloat16InstructionSet();
    if (bfloat16.fold != nullptr) all.push_back(std::make_unique<CpuDecoder>(bfloat16, "cpu-avx512-bf16"));
    for (const DecodeInstructionSet& set : DecodeInstructionSets()) {
      if (set.fold != nullptr) all.push_back(std::make_unique<CpuDecoder>(set, NameOf(set)));
    }
    return all;
  }();
  std::vector<const DecodeKernel*> pointers;
  for (const auto& decoder : decoders) pointers.push_back(decoder.get());
  return pointers;
}

}  // namespace tessera::cpu
