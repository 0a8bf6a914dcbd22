#include "kernels/reference/decode.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/decode_check.h"
#include "kernels/reference/score.h"

namespace tessera::reference {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// One query row of one head: scores are kept, so that the maximum is exact before the first exponential.
void DecodeRow(const DecodeArgs& args, const DecodeSequence& sequence, size_t index, int head) {
  const CacheLayer& cache = args.cache;
  const int64_t row = sequence.first_query_row + static_cast<int64_t>(index);
  const Range visible = sequence.visible[index];
  const int kv_head = KeyHeadOf(args, head);
  float* const output = static_cast<float*>(args.output.At(row, head));
  float* const lse = static_cast<float*>(args.lse.At(row, head));
  ScoreArgs score;
  score.scale = args.scale;
  score.soft_cap = args.soft_cap;
  std::vector<double> scores;
  double max = kMinusInfinity;
  bool poisoned = false;
  for (int64_t key = visible.begin; key < visible.end; ++key) {
    const double s =
        Score(args.query.At(row, head), KeyAt(cache, sequence.pages, key, kv_head), cache.dtype, cache.qk_width, score);
    scores.push_back(s);
    max = std::max(max, s);
    poisoned |= std::isnan(s);
  }
  std::vector<double> sums(cache.v_width, 0.0);
  double total = 0;
  const bool seen = poisoned || max != kMinusInfinity;
  for (size_t i = 0; seen && i < scores.size(); ++i) {
    const double p = std::exp(scores[i] - max);
    const std::byte* const value = ValueAt(cache, sequence.pages, visible.begin + static_cast<int64_t>(i), kv_head);
    total += p;
    for (int j = 0; j < cache.v_width; ++j) sums[j] += p * static_cast<double>(LoadAsFloat(value, cache.dtype, j));
  }
  for (int j = 0; j < cache.v_width; ++j) output[j] = seen ? static_cast<float>(sums[j] / total) : 0.0f;
  *lse = seen ? static_cast<float>(max + std::log(total)) : -std::numeric_limits<float>::infinity();
}

class ReferenceDecoder final : public DecodeKernel {
 public:
  std::string_view name() const override { return "reference"; }
  std::string WhyNot(const DecodeTraits& traits) const override {
    return traits.qk_width < 1 || traits.v_width < 1 ? "widths must be at least 1" : "";
  }
  Status Decode(const DecodeArgs& args) const override {
    TESSERA_RETURN_IF_ERROR(CheckDecodeArgs(args));
    for (const DecodeSequence& sequence : args.sequences) {
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(args.threads)
      for (size_t index = 0; index < sequence.visible.size(); ++index) {
        for (int head = 0; head < args.query.heads; ++head) {
          if (!IsSet(args.cancelled)) DecodeRow(args, sequence, index, head);
        }
      }
    }
    return IsSet(args.cancelled) ? absl::CancelledError("reference: cancelled") : absl::OkStatus();
  }
};

}  // namespace

const DecodeKernel* Decoder() {
  static const ReferenceDecoder decoder;
  return &decoder;
}

}  // namespace tessera::reference
