// Decoding on the CPU: threads take tasks, each folds into partial results of its own, and these are merged in
// the order of the keys.
#include <hwy/targets.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cpu/attend.h"
#include "kernels/cpu/decode.h"
#include "kernels/cpu/decode_amx.h"
#include "kernels/cpu/decode_plan.h"
#include "kernels/cpu/decode_reader.h"
#include "kernels/cpu/scratch.h"
#include "kernels/decode_check.h"

namespace tessera::cpu {
namespace {

// Below every finite score, yet finite: see softmax-inl.h.
constexpr float kNoMax = std::numeric_limits<float>::lowest();
constexpr int kMaxWidth = 4096;

// What chunks leave for the merge, in memory of the calling thread. A pair of a chunk that saw nothing has sum 0.
struct Partials {
  float* output;  // [partials][v_stride], unnormalised
  float* max;     // [partials]
  float* sum;     // [partials][kDecodeLanes]
  float* weight;  // [partials][kDecodeLanes]

  static size_t Floats(size_t count, int v_stride) { return count * (v_stride + 2 * kDecodeLanes + 1); }
  Partials(float* memory, size_t count, int v_stride)
      : output(memory),
        max(output + count * (v_stride + 2 * kDecodeLanes)),
        sum(output + count * v_stride),
        weight(sum + count * kDecodeLanes) {}
};

double SumLanes(const float* lanes) {
  double sums[4] = {};  // side by side: additions wait for each other
  for (int i = 0; i < kDecodeLanes; ++i) sums[i % 4] += static_cast<double>(lanes[i]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Hands out tasks in order: much at first, so that a thread reads ahead from one into the next, and one by one in the
// end, so that all threads end together.
class TaskQueue {
 public:
  TaskQueue(size_t tasks, int threads) : tasks_(tasks), threads_(threads) {}
  // [begin, end); empty when none is left.
  std::pair<size_t, size_t> Take() {
    size_t begin = next_.load(std::memory_order_relaxed), end = 0;
    do {
      end = std::min(tasks_, begin + 1 + (tasks_ - std::min(begin, tasks_)) / (2 * static_cast<size_t>(threads_)));
    } while (begin < tasks_ && !next_.compare_exchange_weak(begin, end, std::memory_order_relaxed));
    return {std::min(begin, tasks_), end};
  }

 private:
  const size_t tasks_;
  const int threads_;
  std::atomic<size_t> next_ = 0;
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
    static thread_local Scratch partial_memory;
    float* const memory = partial_memory.Take(Partials::Floats(wave.partials, prototype.v_stride));
    const Partials partials(memory, wave.partials, prototype.v_stride);
    for (const DecodeTask& task : wave.tasks) {
      prototype.most_pairs = std::max(prototype.most_pairs, PairsOf(wave, task));
    }
    const size_t query = static_cast<size_t>(prototype.most_pairs) * prototype.qk_stride;
    const size_t key = static_cast<size_t>(kDecodeKeys) * prototype.qk_stride;
    const size_t value = static_cast<size_t>(kDecodeKeys) * prototype.v_stride;
    const size_t score = static_cast<size_t>(prototype.most_pairs + kDecodeRows - 1) * kDecodeKeys;
    const size_t scratch = set_.scratch_floats != nullptr ? set_.scratch_floats(prototype) : 0;
    const size_t floats = query + key + value + score + scratch;
    std::atomic<bool> failed = memory == nullptr;
    const int threads = static_cast<int>(std::clamp<size_t>(wave.tasks.size(), 1, args.threads));
    TaskQueue queue(wave.tasks.size(), threads);
#pragma omp parallel num_threads(threads)
    {
      static thread_local Scratch arena_memory;
      float* const arena = arena_memory.Take(floats);
      if (arena == nullptr) failed = true;
      DecodeState state = prototype;
      state.query = reinterpret_cast<std::byte*>(arena);
      state.key = arena + query;
      state.value = state.key + key;
      state.score = state.value + value;
      state.scratch = state.score + score;
      if (set_.begin != nullptr) set_.begin();
      for (auto [begin, end] = queue.Take(); begin < end && !failed; std::tie(begin, end) = queue.Take()) {
        Fold(args, wave, begin, end, partials, state);
      }
#pragma omp barrier
#pragma omp for schedule(static)
      for (size_t i = 0; i < wave.pairs.size(); ++i) {
        for (int pair = 0; pair < wave.pairs[i].pairs(); ++pair) {
          if (!failed && !IsSet(args.cancelled)) Merge(args, wave, wave.pairs[i], pair, partials, state);
        }
      }
      if (set_.end != nullptr) set_.end();
      arena_memory.Release();
    }
    partial_memory.Release();
    if (!failed) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat(name_, ": no memory for partial results"));
  }

  static int PairsOf(const DecodeWave& wave, const DecodeTask& task) {
    return static_cast<int>(task.heads) * wave.heads(task).front().pairs();
  }

  // Empty partial results, and the queries.
  void Begin(const DecodeArgs& args, const DecodeWave& wave, const DecodeTask& task, const Partials& partials,
             DecodeState& state) const {
    const size_t count = PairsOf(wave, task);
    state.output = partials.output + task.first_partial * state.v_stride;
    state.max = partials.max + task.first_partial;
    state.sum = partials.sum + task.first_partial * kDecodeLanes;
    state.weight = partials.weight + task.first_partial * kDecodeLanes;
    std::memset(state.output, 0, count * state.v_stride * sizeof(float));
    std::fill_n(state.max, count, kNoMax);
    std::fill_n(state.sum, count * kDecodeLanes, 0.0f);
    std::fill_n(state.weight, count * kDecodeLanes, 0.0f);
    for (const DecodePairs& pairs : wave.heads(task)) {
      for (int pair = 0; pair < pairs.pairs(); ++pair) {
        set_.load_query(state, pairs.first_pair + pair, args.query.At(RowOf(pairs, pair), HeadOf(pairs, pair)));
      }
    }
    if (set_.pack_queries != nullptr) set_.pack_queries(state, static_cast<int>(count));
  }

  // Tasks [begin, end).
  void Fold(const DecodeArgs& args, const DecodeWave& wave, size_t begin, size_t end, const Partials& partials,
            DecodeState& state) const {
    DecodeReader reader(args, wave, begin, end, set_.block_keys);
    DecodePlace places[2];
    int now = 0;
    size_t begun = begin;
    Begin(args, wave, wave.tasks[begun], partials, state);
    bool more = reader.Next(&places[now]);
    while (more && !IsSet(args.cancelled)) {
      const DecodePlace& place = places[now];
      more = reader.Next(&places[1 - now]);
      while (begun < place.task) Begin(args, wave, wave.tasks[++begun], partials, state);
      set_.fold(state, place.block, places[1 - now].block, wave.heads(wave.tasks[place.task]).front().pairs(),
                place.segment->runs);
      now = 1 - now;
    }
    // Tasks behind the last visible key have partial results too.
    while (begun + 1 < end) Begin(args, wave, wave.tasks[++begun], partials, state);
  }

  void Merge(const DecodeArgs& args, const DecodeWave& wave, const DecodePairs& pairs, int pair,
             const Partials& partials, const DecodeState& state) const {
    float* const merged = state.value;  // of this thread, free by now and long enough
    const auto partial_of = [&](size_t chunk) {
      return wave.tasks[pairs.first_task + chunk].first_partial + pairs.first_pair + pair;
    };
    float max = kNoMax;
    for (size_t i = 0; i < pairs.chunks(); ++i) {
      max = std::max(max, partials.max[partial_of(i)]);
    }
    std::memset(merged, 0, state.v_stride * sizeof(float));
    double sum = 0, weight = 0;
    for (size_t i = 0; i < pairs.chunks(); ++i) {
      const size_t partial = partial_of(i);
      const float factor = std::exp(partials.max[partial] - max);
      sum += factor * SumLanes(partials.sum + partial * kDecodeLanes);
      weight += factor * SumLanes(partials.weight + partial * kDecodeLanes);
      set_.add(factor, partials.output + partial * state.v_stride, state.v_stride, merged);
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
