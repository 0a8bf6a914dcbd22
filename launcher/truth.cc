#include "launcher/truth.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "kernels/attention.h"
#include "kernels/reference/reference.h"

namespace tessera::launcher {
namespace {

// The plain run in fp64 is the reference itself, whose error is nothing, so the order of sums is what is left.
constexpr double kFloat64Tolerance = 1e-12;

// Half the distance from 1 to the next value.
double UnitRoundoff(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 0x1p-24;
    case DType::kBFloat16:
      return 0x1p-8;
    case DType::kFloat16:
      return 0x1p-11;
    case DType::kFloat64:
      return kFloat64Tolerance;
  }
  return 0;
}

// A partial over no keys: O = 0, LSE = -inf.
void Clear(const TensorView& output, const TensorView& lse) {
  for (int64_t i = 0; i < output.elements(); ++i) StoreFromFloat(output.data, output.dtype, i, 0.0f);
  for (int64_t i = 0; i < lse.elements(); ++i) {
    StoreFromFloat(lse.data, lse.dtype, i, -std::numeric_limits<float>::infinity());
  }
}

SampledResult Widen(const ConstTensorView& output, const ConstTensorView& lse) {
  SampledResult result;
  result.output.resize(output.elements());
  for (int64_t i = 0; i < output.elements(); ++i) result.output[i] = LoadAsDouble(output.data, output.dtype, i);
  result.lse.resize(lse.elements());
  for (int64_t i = 0; i < lse.elements(); ++i) result.lse[i] = LoadAsDouble(lse.data, lse.dtype, i);
  return result;
}

// One kernel call over all keys for the sampled rows: what one device without any plan computes.
StatusOr<SampledResult> PlainRun(const Problem& problem, const ConstTensorView& query, const ConstTensorView& key,
                                 const ConstTensorView& value, const std::vector<int64_t>& tokens,
                                 const ScoreArgs& score, const std::string& kernel_name, int threads) {
  TESSERA_ASSIGN_OR_RETURN(const AttentionKernel* kernel,
                           FindAttentionKernel({problem.dtype, problem.qk_width, problem.v_width}, kernel_name));
  const auto rows = static_cast<int64_t>(tokens.size());
  const int heads = problem.query_heads;
  const DType accumulator = AccumulatorType(problem.dtype);
  TESSERA_ASSIGN_OR_RETURN(const HostTensor partial, HostTensor::Allocate(accumulator, rows, heads, problem.v_width));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor partial_lse, HostTensor::Allocate(accumulator, rows, heads, 1));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor output, HostTensor::Allocate(problem.dtype, rows, heads, problem.v_width));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor lse, HostTensor::Allocate(accumulator, rows, heads, 1));
  Clear(partial.view(), partial_lse.view());

  std::vector<Tile> tiles;
  for (int64_t row = 0; row < rows; ++row) tiles.push_back({row, {tokens[row], 1, 1}, 0, {0, problem.key_tokens, 1}});
  AttendArgs args{.query = query,
                  .key = key,
                  .value = value,
                  .output = partial.view(),
                  .lse = partial_lse.view(),
                  .tiles = tiles,
                  .bands = problem.mask.bands(),
                  .first_query_head = 0,
                  .first_kv_head = 0,
                  .group = problem.group(),
                  .score = score,
                  .threads = threads};
  TESSERA_RETURN_IF_ERROR(kernel->Attend(args));
  FinishPartials(partial.view(), partial_lse.view(), {}, output.view(), lse.view(), threads);
  return Widen(output.view(), lse.view());
}

}  // namespace

std::vector<OwnedSample> OwnedSamples(const Layout& layout, int rank, const std::vector<int64_t>& tokens) {
  std::vector<OwnedSample> owned;
  int64_t first_row = 0;
  for (const Segment& segment : layout.segments(rank)) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      const Range rows = RowsWithin(segment, {tokens[i], tokens[i] + 1});
      if (!rows.empty()) owned.push_back({i, first_row + rows.begin});
    }
    first_row += segment.count;
  }
  return owned;
}

std::vector<int64_t> SampleRows(int64_t tokens, int64_t count) {
  std::vector<int64_t> rows(std::min(tokens, count));
  if (count >= tokens) {
    std::iota(rows.begin(), rows.end(), int64_t{0});
    return rows;
  }
  // Evenly spaced rows would meet the same position of every chunk, so each is drawn within its stratum.
  std::mt19937_64 generator(0x7e55e7a);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = tokens * i / count, end = tokens * (i + 1) / count;
    rows[i] = begin + static_cast<int64_t>(generator() % static_cast<uint64_t>(end - begin));
  }
  if (count > 0) rows.front() = 0;
  if (count > 1) rows.back() = tokens - 1;
  return rows;
}

StatusOr<Truth> ComputeTruth(const Problem& problem, const InputSource& input, std::vector<int64_t> rows,
                             const std::string& kernel, int threads) {
  // The reference addresses queries by global token; only the sampled rows of this allocation are ever touched.
  TESSERA_ASSIGN_OR_RETURN(const HostTensor query, AllocateOperand(problem, Operand::kQuery, problem.query_tokens));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor key, AllocateOperand(problem, Operand::kKey, problem.key_tokens));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor value, AllocateOperand(problem, Operand::kValue, problem.key_tokens));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor sampled,
                           AllocateOperand(problem, Operand::kQuery, static_cast<int64_t>(rows.size())));
  const Segment all_keys{0, problem.key_tokens, 1};
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kKey, {&all_keys, 1}, key.view()));
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kValue, {&all_keys, 1}, value.view()));
  for (size_t i = 0; i < rows.size(); ++i) {
    const Segment row{rows[i], 1, 1};
    const auto one = [&](const TensorView& view, int64_t at) {
      return TensorView::Dense(view.At(at, 0), view.dtype, 1, view.heads, view.width);
    };
    TESSERA_RETURN_IF_ERROR(input.Read(Operand::kQuery, {&row, 1}, one(query.view(), rows[i])));
    TESSERA_RETURN_IF_ERROR(input.Read(Operand::kQuery, {&row, 1}, one(sampled.view(), static_cast<int64_t>(i))));
  }
  ScoreArgs score;
  score.scale = problem.EffectiveScale();
  score.soft_cap = problem.score.soft_cap;
  score.position_offset = problem.key_tokens - problem.query_tokens;

  TESSERA_ASSIGN_OR_RETURN(reference::Rows exact, reference::Attention(query.view(), key.view(), value.view(),
                                                                       problem.mask.bands(), score, {}, rows));
  Truth truth{std::move(rows), std::move(exact.output), std::move(exact.lse), 0, {}};
  for (double x : truth.output) truth.largest = std::max(truth.largest, std::abs(x));
  TESSERA_ASSIGN_OR_RETURN(const SampledResult plain, PlainRun(problem, sampled.view(), key.view(), value.view(),
                                                               truth.rows, score, kernel, threads));
  truth.plain = Compare(truth, plain);
  return truth;
}

StatusOr<std::vector<double>> GatherRows(Communicator& comm, const Layout& layout, const std::vector<int64_t>& rows,
                                         const ConstTensorView& local) {
  const int64_t row_numbers = int64_t{local.heads} * local.width;
  std::vector<int64_t> counts(comm.size()), displacements(comm.size());
  std::vector<size_t> order;  // sample of each gathered row
  for (int rank = 0; rank < comm.size(); ++rank) {
    displacements[rank] = static_cast<int64_t>(order.size()) * row_numbers * sizeof(double);
    for (const OwnedSample& owned : OwnedSamples(layout, rank, rows)) order.push_back(owned.sample);
    counts[rank] = static_cast<int64_t>(order.size()) * row_numbers * sizeof(double) - displacements[rank];
  }
  std::vector<double> mine;
  for (const OwnedSample& owned : OwnedSamples(layout, comm.rank(), rows)) {
    const void* row = local.At(owned.local_row, 0);
    for (int64_t i = 0; i < row_numbers; ++i) mine.push_back(LoadAsDouble(row, local.dtype, i));
  }
  std::vector<double> gathered(order.size() * row_numbers);
  TESSERA_ASSIGN_OR_RETURN(
      Request request, comm.AllGatherV(std::as_bytes(std::span(mine)), reinterpret_cast<std::byte*>(gathered.data()),
                                       counts, displacements));
  TESSERA_RETURN_IF_ERROR(Wait(comm, request, "the sampled rows"));
  std::vector<double> result(rows.size() * row_numbers);
  for (size_t i = 0; i < order.size(); ++i) {
    std::copy_n(gathered.data() + i * row_numbers, row_numbers, result.begin() + order[i] * row_numbers);
  }
  return result;
}

StatusOr<SampledResult> GatherSamples(Communicator& comm, const Layout& layout, const std::vector<int64_t>& rows,
                                      const ConstTensorView& output, const ConstTensorView& lse) {
  SampledResult result;
  TESSERA_ASSIGN_OR_RETURN(result.output, GatherRows(comm, layout, rows, output));
  TESSERA_ASSIGN_OR_RETURN(result.lse, GatherRows(comm, layout, rows, lse));
  return result;
}

Errors Compare(const Truth& truth, const SampledResult& result) {
  Errors errors;
  double squares = 0, exact_squares = 0;
  // std::max drops NaN, so differences are negated comparisons: anything not provably small counts as infinite.
  const auto grow = [](double& worst, double difference) {
    if (!(difference <= worst)) worst = std::isnan(difference) ? std::numeric_limits<double>::infinity() : difference;
  };
  for (size_t i = 0; i < truth.output.size(); ++i) {
    const double difference = std::abs(result.output[i] - truth.output[i]);
    grow(errors.max_absolute, difference);
    squares += difference * difference;
    exact_squares += truth.output[i] * truth.output[i];
  }
  for (size_t i = 0; i < truth.lse.size(); ++i) {
    const double exact = truth.lse[i];
    if (result.lse[i] == exact) continue;  // -inf, a row that attends no key
    grow(errors.lse_relative, std::abs(result.lse[i] - exact) / std::max(1.0, std::abs(exact)));
  }
  grow(errors.relative, exact_squares > 0 ? std::sqrt(squares / exact_squares) : std::sqrt(squares));
  return errors;
}

bool Acceptable(const Errors& errors, const Truth& truth, DType dtype) {
  // Where the plain run happens to be exact, merging partials still rounds a few times, and one value may be
  // rounded to the other neighbour in its dtype.
  const double few_roundings = 4 * UnitRoundoff(AccumulatorType(dtype));
  const double lse_tolerance = dtype == DType::kFloat64 ? kFloat64Tolerance : 1e-5;
  return errors.relative <= std::max(2 * truth.plain.relative, few_roundings) &&
         errors.max_absolute <= 2 * truth.plain.max_absolute + UnitRoundoff(dtype) * truth.largest &&
         errors.lse_relative <= lse_tolerance;
}

}  // namespace tessera::launcher
