#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/check.h"
#include "kernels/reference/backward.h"
#include "kernels/reference/score.h"

namespace tessera::reference {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// Softmax attention of one query row: scores are kept, so that the maximum is exact before the first exponential.
struct RowAttention {
  std::vector<double> scores;
  std::vector<double> output;  // [Dv]; zero when no key was seen
  double lse = kMinusInfinity;

  void Attend(const void* query, const ConstTensorView& key, const ConstTensorView& value, int kv_head,
              std::span<const KeyRun> runs, const ScoreArgs& score, double slope, int64_t query_token);
};

void RowAttention::Attend(const void* query, const ConstTensorView& key, const ConstTensorView& value, int kv_head,
                          std::span<const KeyRun> runs, const ScoreArgs& score, double slope, int64_t query_token) {
  scores.clear();
  output.assign(value.width, 0.0);
  lse = kMinusInfinity;
  for (const KeyRun& run : runs) {
    for (int64_t i = 0; i < run.keys.count; ++i) {
      const double s = Score(query, key.At(run.first_row + i, kv_head), key.dtype, key.width, score);
      scores.push_back(s - Penalty(slope, score, query_token, run.keys.token(i)));
    }
  }
  double max = kMinusInfinity;
  for (double s : scores) max = std::max(max, s);
  if (max == kMinusInfinity && std::none_of(scores.begin(), scores.end(), [](double s) { return std::isnan(s); })) {
    return;
  }
  double sum = 0;
  size_t next = 0;
  for (const KeyRun& run : runs) {
    for (int64_t i = 0; i < run.keys.count; ++i) {
      const double p = std::exp(scores[next++] - max);
      sum += p;
      const void* const v = value.At(run.first_row + i, kv_head);
      for (int j = 0; j < value.width; ++j) output[j] += p * LoadAsDouble(v, value.dtype, j);
    }
  }
  for (double& o : output) o /= sum;
  lse = max + std::log(sum);
}

class ReferenceKernel final : public AttentionKernel {
 public:
  std::string_view name() const override { return "reference"; }
  std::string WhyNot(const AttentionTraits& traits) const override {
    return traits.qk_width < 1 || traits.v_width < 1 ? "head widths must be at least 1" : "";
  }
  Status Attend(const AttendArgs& args) const override {
    TESSERA_RETURN_IF_ERROR(CheckAttendArgs(args));
    // Tiles may repeat query rows, heads never do.
#pragma omp parallel for schedule(dynamic) num_threads(args.threads)
    for (int head = 0; head < args.query.heads; ++head) {
      RowAttention attention;
      std::vector<KeyRun> runs;
      for (const Tile& tile : args.tiles) {
        for (int64_t row = 0; row < tile.queries.count; ++row) {
          if (IsSet(args.cancelled)) continue;
          runs.clear();
          AppendRuns(args.bands, tile.queries.token(row), tile.key_row, tile.keys, &runs);
          if (runs.empty()) continue;
          attention.Attend(args.query.At(tile.query_row + row, head), args.key, args.value, KeyHeadOf(args, head), runs,
                           args.score, args.score.alibi_slopes.empty() ? 0.0f : args.score.alibi_slopes[head],
                           tile.queries.token(row));
          Fold(attention, args, tile.query_row + row, head);
        }
      }
    }
    return IsSet(args.cancelled) ? absl::CancelledError("reference: cancelled") : absl::OkStatus();
  }
  Status AttendBackward(const AttendBackwardArgs& args) const override {
    return reference::AttendBackward(args);
  }

 private:
  static void Fold(const RowAttention& row_attention, const AttendArgs& args, int64_t row, int head) {
    void* const lse = args.lse.At(row, head);
    void* const out = args.output.At(row, head);
    const DType dtype = args.output.dtype;
    const double old = LoadAsDouble(lse, dtype, 0);
    const double seen = row_attention.lse;
    if (seen == kMinusInfinity) return;
    const bool first = old == kMinusInfinity;
    const double max = std::max(old, seen);
    const double total = first ? seen : max + std::log(std::exp(old - max) + std::exp(seen - max));
    const double old_share = first ? 0.0 : std::exp(old - total);
    const double seen_share = std::exp(seen - total);
    for (int i = 0; i < args.output.width; ++i) {
      const double kept = first ? 0.0 : old_share * LoadAsDouble(out, dtype, i);
      StoreFromDouble(out, dtype, i, kept + seen_share * row_attention.output[i]);
    }
    StoreFromDouble(lse, dtype, 0, total);
  }
};

}  // namespace

StatusOr<Rows> Attention(const ConstTensorView& query, const ConstTensorView& key, const ConstTensorView& value,
                         std::span<const Band> bands, const ScoreArgs& score, std::span<const float> sinks,
                         std::span<const int64_t> query_rows) {
  if (key.heads == 0 || query.heads % key.heads != 0) {
    return absl::InvalidArgumentError("reference: query heads must be a multiple of key heads");
  }
  if (key.width != query.width || key.rows != value.rows || key.heads != value.heads) {
    return absl::InvalidArgumentError("reference: query, key and value disagree in shape");
  }
  if (!sinks.empty() && sinks.size() != static_cast<size_t>(query.heads)) {
    return absl::InvalidArgumentError("reference: there must be one sink per query head");
  }
  const Segment all_keys{0, key.rows, 1};
  Rows result;
  RowAttention attention;
  std::vector<KeyRun> runs;
  for (int64_t row : query_rows) {
    if (row < 0 || row >= query.rows) return absl::InvalidArgumentError("reference: query row out of range");
    runs.clear();
    AppendRuns(bands, row, 0, all_keys, &runs);
    for (int head = 0; head < query.heads; ++head) {
      attention.Attend(query.At(row, head), key, value, head / (query.heads / key.heads), runs, score,
                       score.alibi_slopes.empty() ? 0.0f : score.alibi_slopes[head], row);
      double share = 1;
      double lse = attention.lse;
      if (const double sink = sinks.empty() ? kMinusInfinity : sinks[head]; sink != kMinusInfinity) {
        const double max = std::max(lse, sink);
        const double total = max + std::log(std::exp(lse - max) + std::exp(sink - max));
        share = std::exp(lse - total);
        lse = total;
      }
      for (double o : attention.output) result.output.push_back(o * share);
      result.lse.push_back(lse);
    }
  }
  return result;
}

const AttentionKernel* Kernel() {
  static const ReferenceKernel kernel;
  return &kernel;
}

}  // namespace tessera::reference
