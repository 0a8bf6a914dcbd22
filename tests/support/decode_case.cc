#include "tests/support/decode_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/decode_local.h"
#include "tests/support/local_tensors.h"

namespace tessera::testing {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

int64_t Pick(std::mt19937_64& generator, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}
template <typename T>
T OneOf(std::mt19937_64& generator, std::initializer_list<T> choices) {
  return choices.begin()[Pick(generator, 0, static_cast<int64_t>(choices.size()) - 1)];
}

std::vector<std::byte> Normal(int64_t elements, DType dtype, std::mt19937_64& generator) {
  std::vector<std::byte> data(elements * SizeInBytes(dtype));
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < elements; ++i) StoreFromFloat(data.data(), dtype, i, normal(generator));
  return data;
}

// Attention of one query row of one head over the tokens it sees, in `Real` arithmetic; weights meet the values as
// `weights` has them.
template <typename Real>
struct RowResult {
  std::vector<Real> output;
  Real lse = -std::numeric_limits<Real>::infinity();
};
template <typename Real>
RowResult<Real> Attend(const DecodeCase& problem, int rank, const DecodeCase::Sequence& s, int64_t row, Range visible,
                       int head, DType weights) {
  const CacheRowShape& shape = problem.shape;
  const int kv = head / (problem.spec.heads / problem.spec.kv_heads);
  const std::vector<int> columns = KeyColumns(problem, rank);
  const Range values =
      shape.latent ? problem.sharding.LatentColumns(rank, shape.value_width) : Range{0, shape.value_width};
  RowResult<Real> result;
  result.output.assign(values.size(), Real{0});
  std::vector<Real> scores;
  for (int64_t t = visible.begin; t < visible.end; ++t) {
    Real score = 0;
    for (const int c : columns) {
      score +=
          static_cast<Real>(
              LoadAsFloat(problem.query.data(), shape.dtype, (row * problem.spec.heads + head) * shape.key_width + c)) *
          static_cast<Real>(LoadAsFloat(s.key.data(), shape.dtype, (t * shape.kv_heads + kv) * shape.key_width + c));
    }
    score *= static_cast<Real>(problem.options.scale);
    const Real cap = static_cast<Real>(problem.options.soft_cap);
    scores.push_back(cap > 0 ? cap * std::tanh(score / cap) : score);
  }
  if (scores.empty()) return result;
  const Real most = *std::max_element(scores.begin(), scores.end());
  Real sum = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const Real weight = std::exp(scores[i] - most);
    sum += weight;
    const Real factor =
        SizeInBytes(weights) == 2 ? static_cast<Real>(RoundWeight(weights, static_cast<float>(weight))) : weight;
    const int64_t t = visible.begin + static_cast<int64_t>(i);
    const std::byte* const matrix = shape.latent ? s.key.data() : s.value.data();
    const int width = shape.latent ? shape.key_width : shape.value_width;
    for (int64_t c = values.begin; c < values.end; ++c) {
      result.output[c - values.begin] +=
          factor * static_cast<Real>(LoadAsFloat(matrix, shape.dtype, (t * shape.kv_heads + kv) * width + c));
    }
  }
  for (Real& value : result.output) value /= sum;
  result.lse = most + std::log(sum);
  return result;
}

// Ends at `end`, and mostly begins at the beginning.
Range RangeUpTo(int64_t end, std::mt19937_64& generator) {
  return {Pick(generator, 0, 3) == 0 ? Pick(generator, 0, end) : 0, end};
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

struct Errors {
  double squares = 0;
  double max = 0;
  int64_t count = 0;
  void Add(double value, double exact) {
    const double e = std::abs(value - exact);
    squares += e * e;
    max = std::isnan(e) ? std::numeric_limits<double>::infinity() : std::max(max, e);
    ++count;
  }
  double rms() const { return count == 0 ? 0 : std::sqrt(squares / static_cast<double>(count)); }
};

}  // namespace

std::string DecodeCase::ToString() const {
  std::string text =
      absl::StrCat(tessera::ToString(spec), ", ", sharding.ToString(), ", pages of ", page_tokens, ", sequences");
  for (const Sequence& s : sequences) absl::StrAppend(&text, " ", s.tokens, "x", s.visible.size());
  return text;
}

DecodeCase RandomDecodeCase(DecodeMethod method, int ranks, std::mt19937_64& generator, const DecodeCaseKind& kind) {
  DecodeCase problem;
  DecodeSpec& spec = problem.spec;
  CacheRowShape& shape = problem.shape;
  spec.method = method;
  spec.ranks = ranks;
  shape.dtype = kind.sixteen_bit ? OneOf(generator, {DType::kBFloat16, DType::kFloat16})
                                 : OneOf(generator, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
  shape.latent = method == DecodeMethod::kTpla || Pick(generator, 0, 1) == 0;
  if (method == DecodeMethod::kTpla) {
    do spec.groups = static_cast<int>(Pick(generator, 1, ranks));
    while (ranks % spec.groups != 0 || (kind.shape && kind.shape->value_width % spec.groups != 0));
  }
  if (shape.latent) {
    shape.kv_heads = 1;
    shape.value_width = spec.groups * static_cast<int>(Pick(generator, 1, 24));
    shape.key_width = shape.value_width + static_cast<int>(Pick(generator, 1, 9));
    spec.heads = static_cast<int>(Pick(generator, 1, 12));
  } else {
    shape.kv_heads = static_cast<int>(Pick(generator, 1, 5));
    shape.key_width = static_cast<int>(Pick(generator, 1, 40));
    shape.value_width = static_cast<int>(Pick(generator, 1, 40));
    spec.heads = shape.kv_heads * static_cast<int>(Pick(generator, 1, 4));
  }
  if (kind.shape) {
    const int group = spec.heads / shape.kv_heads;
    shape = *kind.shape;
    spec.heads = shape.kv_heads * (shape.latent ? spec.heads : group);
  }
  spec.dtype = shape.dtype;
  spec.kv_heads = shape.kv_heads;
  problem.options.scale = 1.0f / std::sqrt(static_cast<float>(shape.key_width));
  if (Pick(generator, 0, 3) == 0) problem.options.soft_cap = 2.0f;
  problem.page_tokens = static_cast<int>(Pick(generator, 1, 16));
  CacheSharding& sharding = problem.sharding;
  sharding.axis = spec.axis();
  sharding.ranks = ranks;
  sharding.groups = spec.groups;
  sharding.query_heads = spec.heads;
  sharding.block_tokens = static_cast<int>(Pick(generator, 1, 12));
  const CacheRowShape stored = sharding.LocalShape(0, shape);
  spec.qk_width = stored.key_width;
  spec.v_width = stored.value_width;
  const int64_t sequences = Pick(generator, 0, 4);
  for (int64_t i = 0; i < sequences; ++i) {
    DecodeCase::Sequence& s = problem.sequences.emplace_back();
    s.tokens = OneOf<int64_t>(generator, {0, 1, Pick(generator, 1, 20), Pick(generator, 1, 90)});
    const int64_t queries = Pick(generator, 0, 3);
    for (int64_t q = 0; q < queries; ++q) {
      // Causal, aligned at the last token.
      s.visible.push_back(RangeUpTo(std::max<int64_t>(0, s.tokens - queries + q + 1), generator));
    }
    s.key = Normal(s.tokens * shape.kv_heads * shape.key_width, shape.dtype, generator);
    if (!shape.latent) s.value = Normal(s.tokens * shape.kv_heads * shape.value_width, shape.dtype, generator);
    spec.rows += queries;
  }
  problem.query = Normal(spec.rows * spec.heads * shape.key_width, shape.dtype, generator);
  return problem;
}

void RedrawStep(DecodeCase& problem, std::mt19937_64& generator) {
  for (DecodeCase::Sequence& s : problem.sequences) {
    for (Range& range : s.visible) range = RangeUpTo(Pick(generator, 0, s.tokens), generator);
  }
  problem.query = Normal(problem.rows() * problem.spec.heads * problem.shape.key_width, problem.shape.dtype, generator);
}

Status RunDecodeRank(Communicator& comm, const DecodeCase& problem, DecodeResult& result) {
  const int rank = comm.rank();
  const LocalDecode local = LayOut(problem, rank);
  TESSERA_ASSIGN_OR_RETURN(const auto decode, DecodeAttention::Create(comm, problem.spec, problem.options));
  const int64_t rows = problem.rows();
  const int query_heads = problem.spec.QueryHeads(rank).size(), heads = problem.spec.OutputHeads(rank).size();
  for (int run = 0; run < 2; ++run) {
    std::vector<float> output(rows * heads * problem.spec.v_width, kNaN), lse(rows * heads, kNaN);
    TESSERA_RETURN_IF_ERROR(decode->Run(
        ConstTensorView::Dense(local.query.data(), problem.spec.dtype, rows, query_heads, problem.spec.qk_width),
        local.layer, local.sequences,
        TensorView::Dense(output.data(), DType::kFloat32, rows, heads, problem.spec.v_width),
        TensorView::Dense(lse.data(), DType::kFloat32, rows, heads, 1)));
    if (run > 0 && !(SameBits(output, result.output) && SameBits(lse, result.lse))) {
      return absl::InternalError("the second run gave other bits than the first");
    }
    result.output = std::move(output);
    result.lse = std::move(lse);
  }
  result.stats = decode->stats();
  return absl::OkStatus();
}

std::string Judge(const DecodeCase& problem, int rank, const DecodeResult& result, DType weights) {
  const HeadRange heads = problem.spec.OutputHeads(rank);
  const int width = problem.spec.v_width;
  Errors error, plain;
  double largest = 0;
  int64_t row = 0;
  for (const DecodeCase::Sequence& s : problem.sequences) {
    for (const Range& visible : s.visible) {
      for (int head = heads.begin; head < heads.end; ++head) {
        const int64_t index = row * heads.size() + head - heads.begin;
        const auto exact = Attend<double>(problem, rank, s, row, visible, head, DType::kFloat32);
        const auto single = Attend<float>(problem, rank, s, row, visible, head, weights);
        for (int c = 0; c < width; ++c) {
          error.Add(result.output[index * width + c], exact.output[c]);
          plain.Add(RoundWeight(problem.spec.dtype, single.output[c]), exact.output[c]);
          largest = std::max(largest, std::abs(exact.output[c]));
        }
        const double got = result.lse[index];
        const bool fine = std::isinf(exact.lse)
                              ? got == exact.lse
                              : std::abs(got - exact.lse) <= 1e-5 * std::max(1.0, std::abs(exact.lse));
        if (!fine) return absl::StrFormat("row %d head %d: lse is %.9g, exactly %.9g", row, head, got, exact.lse);
      }
      ++row;
    }
  }
  const double floor = 4 * std::numeric_limits<float>::epsilon() / 2 * largest;  // a plain run can be exact by luck
  if (error.rms() <= 2 * plain.rms() + floor && error.max <= 2 * plain.max + floor) return "";
  return absl::StrFormat("output error rms %.3g max %.3g, plain rms %.3g max %.3g, floor %.3g", error.rms(), error.max,
                         plain.rms(), plain.max, floor);
}

}  // namespace tessera::testing
