#include "kernels/reference/backward.h"

#include <limits>
#include <map>

#include "kernels/check.h"
#include "kernels/reference/reference.h"
#include "kernels/reference/score.h"

namespace tessera::reference {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// Gradients of the rows of one head in fp64; a row exists once something was added to it.
class RowSums {
 public:
  explicit RowSums(int width) : width_(width) {}
  void Add(int64_t row, double factor, const void* vector, DType dtype) {
    std::vector<double>& sum = rows_.try_emplace(row, width_).first->second;
    for (int i = 0; i < width_; ++i) sum[i] += factor * LoadAsDouble(vector, dtype, i);
  }
  const std::map<int64_t, std::vector<double>>& rows() const { return rows_; }
  void AddTo(const TensorView& gradient, int head) const {
    for (const auto& [row, sum] : rows_) {
      void* const out = gradient.At(row, head);
      for (int i = 0; i < width_; ++i) {
        StoreFromDouble(out, gradient.dtype, i, LoadAsDouble(out, gradient.dtype, i) + sum[i]);
      }
    }
  }

 private:
  int width_;
  std::map<int64_t, std::vector<double>> rows_;
};

// One query row of one head.
struct QueryRow {
  int64_t row = 0;
  int64_t token = 0;
  const void* query = nullptr;
  const void* output_gradient = nullptr;
  double lse = kMinusInfinity;
  double delta = 0;
  double slope = 0;
};

void AddRow(const QueryRow& q, const ConstTensorView& key, const ConstTensorView& value, int kv_head,
            std::span<const KeyRun> runs, const ScoreArgs& score, RowSums* dq, RowSums* dk, RowSums* dv) {
  if (q.lse == kMinusInfinity) return;
  for (const KeyRun& run : runs) {
    for (int64_t i = 0; i < run.keys.count; ++i) {
      const int64_t row = run.first_row + i;
      const void* const k = key.At(row, kv_head);
      const double capped = Score(q.query, k, key.dtype, key.width, score);
      const double p = std::exp(capped - Penalty(q.slope, score, q.token, run.keys.token(i)) - q.lse);
      const double dp = Dot(q.output_gradient, value.At(row, kv_head), value.dtype, value.width);
      const double share = score.soft_cap > 0 ? capped / static_cast<double>(score.soft_cap) : 0.0;
      const double ds = p * (dp - q.delta) * (1 - share * share) * static_cast<double>(score.scale);
      dv->Add(row, p, q.output_gradient, value.dtype);
      dk->Add(row, ds, q.query, key.dtype);
      dq->Add(q.row, ds, k, key.dtype);
    }
  }
}

double SlopeOf(const ScoreArgs& score, int head) {
  return score.alibi_slopes.empty() ? 0.0 : static_cast<double>(score.alibi_slopes[head]);
}

// Copies sums to [rows, heads, width] doubles.
void Copy(const RowSums& sums, int head, const ConstTensorView& like, std::vector<double>* to) {
  for (const auto& [row, sum] : sums.rows()) {
    std::copy(sum.begin(), sum.end(), to->begin() + (row * like.heads + head) * like.width);
  }
}

}  // namespace

Status AttendBackward(const AttendBackwardArgs& args) {
  TESSERA_RETURN_IF_ERROR(CheckAttendBackwardArgs(args));
  // Tiles may repeat rows and query heads share key heads; key heads share nothing.
#pragma omp parallel for schedule(dynamic) num_threads(args.threads)
  for (int kv_head = 0; kv_head < args.key.heads; ++kv_head) {
    const HeadRange heads = QueryHeadsOf(args, kv_head);
    RowSums dk(args.key.width), dv(args.value.width);
    std::vector<KeyRun> runs;
    for (int head = heads.begin; head < heads.end; ++head) {
      RowSums dq(args.query.width);
      for (const Tile& tile : args.tiles) {
        for (int64_t i = 0; i < tile.queries.count; ++i) {
          if (IsSet(args.cancelled)) continue;
          runs.clear();
          AppendRuns(args.bands, tile.queries.token(i), tile.key_row, tile.keys, &runs);
          const int64_t row = tile.query_row + i;
          const QueryRow query{row,
                               tile.queries.token(i),
                               args.query.At(row, head),
                               args.output_gradient.At(row, head),
                               LoadAsDouble(args.lse.At(row, head), args.lse.dtype, 0),
                               LoadAsDouble(args.delta.At(row, head), args.delta.dtype, 0),
                               SlopeOf(args.score, head)};
          AddRow(query, args.key, args.value, kv_head, runs, args.score, &dq, &dk, &dv);
        }
      }
      dq.AddTo(args.query_gradient, head);
    }
    dk.AddTo(args.key_gradient, kv_head);
    dv.AddTo(args.value_gradient, kv_head);
  }
  return IsSet(args.cancelled) ? absl::CancelledError("reference: cancelled") : absl::OkStatus();
}

StatusOr<Gradients> AttentionBackward(const ConstTensorView& query, const ConstTensorView& key,
                                      const ConstTensorView& value, const ConstTensorView& output_gradient,
                                      std::span<const Band> bands, const ScoreArgs& score,
                                      std::span<const float> sinks) {
  std::vector<int64_t> all_rows;
  for (int64_t row = 0; row < query.rows; ++row) all_rows.push_back(row);
  TESSERA_ASSIGN_OR_RETURN(const Rows forward, Attention(query, key, value, bands, score, sinks, all_rows));
  if (output_gradient.rows != query.rows || output_gradient.heads != query.heads ||
      output_gradient.width != value.width || output_gradient.dtype != value.dtype) {
    return absl::InvalidArgumentError(
        "reference: the output gradient disagrees with query and value in shape or dtype");
  }
  Gradients result;
  result.query.resize(static_cast<size_t>(query.elements()));
  result.key.resize(static_cast<size_t>(key.elements()));
  result.value.resize(static_cast<size_t>(value.elements()));
  result.sink.resize(sinks.size());
  std::vector<KeyRun> runs;
  for (int kv_head = 0; kv_head < key.heads; ++kv_head) {
    const int group = query.heads / key.heads;
    RowSums dk(key.width), dv(value.width);
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      RowSums dq(query.width);
      for (int64_t row = 0; row < query.rows; ++row) {
        const size_t pair = static_cast<size_t>(row * query.heads + head);
        const void* const gradient = output_gradient.At(row, head);
        double delta = 0;
        for (int i = 0; i < value.width; ++i) {
          delta += forward.output[pair * value.width + i] * LoadAsDouble(gradient, output_gradient.dtype, i);
        }
        const double lse = forward.lse[pair];
        if (!sinks.empty() && lse != kMinusInfinity) {
          result.sink[head] -= std::exp(static_cast<double>(sinks[head]) - lse) * delta;
        }
        runs.clear();
        AppendRuns(bands, row, 0, {0, key.rows, 1}, &runs);
        AddRow({row, row, query.At(row, head), gradient, lse, delta, SlopeOf(score, head)}, key, value, kv_head, runs,
               score, &dq, &dk, &dv);
      }
      Copy(dq, head, query, &result.query);
    }
    Copy(dk, kv_head, key, &result.key);
    Copy(dv, kv_head, value, &result.value);
  }
  result.lse = forward.lse;
  return result;
}

}  // namespace tessera::reference
