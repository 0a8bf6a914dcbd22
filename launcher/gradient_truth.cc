#include "launcher/gradient_truth.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "collectives/agreement.h"
#include "kernels/attention.h"
#include "kernels/attention_backward.h"
#include "launcher/host.h"

namespace tessera::launcher {
namespace {

// The tensors of the sampled query rows, and all keys.
struct Whole {
  HostTensor query, key, value, output_gradient;
};

StatusOr<HostTensor> InDoubles(const HostTensor& tensor) {
  const TensorView& from = tensor.view();
  TESSERA_ASSIGN_OR_RETURN(HostTensor doubles,
                           HostTensor::Allocate(DType::kFloat64, from.rows, from.heads, from.width));
  for (int64_t i = 0; i < from.elements(); ++i) {
    StoreFromDouble(doubles.view().data, DType::kFloat64, i, LoadAsDouble(from.data, from.dtype, i));
  }
  return doubles;
}

void Fill(const TensorView& view, float value) {
  for (int64_t i = 0; i < view.elements(); ++i) StoreFromFloat(view.data, view.dtype, i, value);
}

// Rows of a tensor, or all when there are none to pick, rounded to `dtype`.
std::vector<double> Rounded(const TensorView& sums, const std::vector<int64_t>* rows, DType dtype) {
  std::vector<double> values;
  const int64_t row_elements = int64_t{sums.heads} * sums.width;
  const int64_t count = rows == nullptr ? sums.rows : static_cast<int64_t>(rows->size());
  for (int64_t i = 0; i < count; ++i) {
    const void* const row = sums.At(rows == nullptr ? i : (*rows)[i], 0);
    for (int64_t j = 0; j < row_elements; ++j) {
      double rounded = 0;
      StoreFromDouble(&rounded, dtype, 0, LoadAsDouble(row, sums.dtype, j));
      values.push_back(LoadAsDouble(&rounded, dtype, 0));
    }
  }
  return values;
}

// One forward and one backward call of a kernel: what one device without any plan computes.
StatusOr<Gradients> PlainGradients(const Problem& problem, const Whole& whole, const std::vector<int64_t>& tokens,
                                   const AttentionKernel& kernel, int threads) {
  const TensorView &query = whole.query.view(), &key = whole.key.view(), &value = whole.value.view();
  const DType dtype = query.dtype, sums = AccumulatorType(dtype);
  const auto allocate = [](DType type, const TensorView& like, int width) {
    return HostTensor::Allocate(type, like.rows, like.heads, width);
  };
  TESSERA_ASSIGN_OR_RETURN(const HostTensor partial, allocate(sums, query, value.width));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor partial_lse, allocate(sums, query, 1));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor output, allocate(dtype, query, value.width));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor lse, allocate(sums, query, 1));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor delta, allocate(sums, query, 1));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor dq, allocate(sums, query, query.width));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor dk, allocate(sums, key, key.width));
  TESSERA_ASSIGN_OR_RETURN(const HostTensor dv, allocate(sums, value, value.width));
  for (const HostTensor* zero : {&partial, &dq, &dk, &dv}) Fill(zero->view(), 0.0f);
  Fill(partial_lse.view(), -std::numeric_limits<float>::infinity());

  std::vector<Tile> tiles;
  for (size_t i = 0; i < tokens.size(); ++i) {
    tiles.push_back({static_cast<int64_t>(i), {tokens[i], 1, 1}, 0, {0, problem.key_tokens, 1}});
  }
  ScoreArgs score;
  score.scale = problem.EffectiveScale();
  score.soft_cap = problem.score.soft_cap;
  score.position_offset = problem.key_tokens - problem.query_tokens;
  AttendArgs forward;
  forward.query = query;
  forward.key = key;
  forward.value = value;
  forward.output = partial.view();
  forward.lse = partial_lse.view();
  AttendBackwardArgs backward;
  backward.query = query;
  backward.key = key;
  backward.value = value;
  backward.output_gradient = whole.output_gradient.view();
  backward.lse = lse.view();
  backward.delta = delta.view();
  backward.query_gradient = dq.view();
  backward.key_gradient = dk.view();
  backward.value_gradient = dv.view();
  const auto complete = [&](auto& args) {
    args.tiles = tiles;
    args.bands = problem.mask.bands();
    args.group = problem.group();
    args.score = score;
    args.threads = threads;
  };
  complete(forward);
  complete(backward);
  TESSERA_RETURN_IF_ERROR(kernel.Attend(forward));
  FinishPartials(partial.view(), partial_lse.view(), {}, output.view(), lse.view(), threads);
  ComputeDelta(output.view(), whole.output_gradient.view(), delta.view(), threads);
  TESSERA_RETURN_IF_ERROR(kernel.AttendBackward(backward));
  return Gradients{Rounded(dq.view(), nullptr, dtype), Rounded(dk.view(), &tokens, dtype),
                   Rounded(dv.view(), &tokens, dtype)};
}

Errors Compare(const std::vector<double>& exact, const std::vector<double>& values) {
  Errors errors;
  double squares = 0, exact_squares = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double difference = std::abs(values[i] - exact[i]);
    squares += difference * difference;  // NaN stays
    exact_squares += exact[i] * exact[i];
    errors.max_absolute = std::max(errors.max_absolute, difference);
  }
  errors.relative = exact_squares > 0 ? std::sqrt(squares / exact_squares) : std::sqrt(squares);
  if (std::isnan(errors.relative)) errors.relative = errors.max_absolute = std::numeric_limits<double>::infinity();
  return errors;
}

void Grow(Errors& worst, const Errors& errors) {
  worst.max_absolute = std::max(worst.max_absolute, errors.max_absolute);
  worst.relative = std::max(worst.relative, errors.relative);
}

}  // namespace

StatusOr<GradientTruth> ComputeGradientTruth(const Problem& problem, const InputSource& input,
                                             std::vector<int64_t> rows, const std::string& kernel_name, int threads) {
  const auto count = static_cast<int64_t>(rows.size());
  Whole whole;
  TESSERA_ASSIGN_OR_RETURN(whole.query, AllocateOperand(problem, Operand::kQuery, count));
  TESSERA_ASSIGN_OR_RETURN(whole.key, AllocateOperand(problem, Operand::kKey, problem.key_tokens));
  TESSERA_ASSIGN_OR_RETURN(whole.value, AllocateOperand(problem, Operand::kValue, problem.key_tokens));
  TESSERA_ASSIGN_OR_RETURN(whole.output_gradient, AllocateOperand(problem, Operand::kOutputGradient, count));
  const Segment all_keys{0, problem.key_tokens, 1};
  std::vector<Segment> sampled;
  for (const int64_t row : rows) sampled.push_back({row, 1, 1});
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kQuery, sampled, whole.query.view()));
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kKey, {&all_keys, 1}, whole.key.view()));
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kValue, {&all_keys, 1}, whole.value.view()));
  TESSERA_RETURN_IF_ERROR(input.Read(Operand::kOutputGradient, sampled, whole.output_gradient.view()));

  TESSERA_ASSIGN_OR_RETURN(const AttentionKernel* kernel,
                           FindAttentionKernel({problem.dtype, problem.qk_width, problem.v_width}, kernel_name));
  TESSERA_ASSIGN_OR_RETURN(const Gradients plain, PlainGradients(problem, whole, rows, *kernel, threads));
  for (HostTensor* tensor : {&whole.query, &whole.key, &whole.value, &whole.output_gradient}) {
    TESSERA_ASSIGN_OR_RETURN(*tensor, InDoubles(*tensor));
  }
  TESSERA_ASSIGN_OR_RETURN(const AttentionKernel* reference,
                           FindAttentionKernel({DType::kFloat64, problem.qk_width, problem.v_width}));
  GradientTruth truth;
  TESSERA_ASSIGN_OR_RETURN(truth.exact, PlainGradients(problem, whole, rows, *reference, threads));
  truth.rows = std::move(rows);
  for (size_t i = 0; i < plain.size(); ++i) truth.plain[i] = Compare(truth.exact[i], plain[i]);
  return truth;
}

StatusOr<Verdict> JudgeGradients(Communicator& comm, const PlanSpec& spec, const BackwardResult& result,
                                 const std::vector<int64_t>& rows, const GradientTruth* truth, int cores,
                                 Errors* plain) {
  Verdict verdict = JudgeReport(spec.problem, result.report, cores);
  const double few_roundings = spec.problem.dtype == DType::kFloat64 ? 1e-12 : 4 * 0x1p-24;
  const HostTensor* const tensors[] = {&result.query_gradient, &result.key_gradient, &result.value_gradient};
  for (size_t i = 0; i < 3 && !rows.empty(); ++i) {
    const Layout& layout = i == 0 ? spec.query_layout : spec.key_layout;
    TESSERA_ASSIGN_OR_RETURN(const std::vector<double> values, GatherRows(comm, layout, rows, tensors[i]->view()));
    if (comm.rank() != 0 || truth == nullptr) continue;
    const Errors errors = Compare(truth->exact[i], values);
    verdict.checked = true;
    verdict.accurate = verdict.accurate && errors.relative <= std::max(2 * truth->plain[i].relative, few_roundings);
    Grow(verdict.errors, errors);
    Grow(*plain, truth->plain[i]);
  }
  TESSERA_ASSIGN_OR_RETURN(const std::vector<Verdict> all, AllGatherValue(comm, verdict, "comparing gradients"));
  return all[0];
}

}  // namespace tessera::launcher
