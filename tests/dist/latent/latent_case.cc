#include "tests/dist/latent/latent_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "partition/planner.h"
#include "tests/dist/latent/run_events.h"

namespace tessera::latent_test {
namespace {

constexpr int64_t kMostTokens = 64;  // of a sequence

int64_t Pick(std::mt19937_64& generator, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}
template <typename T>
T OneOf(std::mt19937_64& generator, std::initializer_list<T> choices) {
  return choices.begin()[Pick(generator, 0, static_cast<int64_t>(choices.size()) - 1)];
}

MlaShape RandomShape(int groups, std::mt19937_64& generator) {
  MlaShape shape;
  shape.hidden = static_cast<int>(Pick(generator, 6, 40));
  shape.heads = static_cast<int>(Pick(generator, 1, 9));
  shape.query_rank = Pick(generator, 0, 1) == 0 ? 0 : static_cast<int>(Pick(generator, 2, 24));
  shape.latent = groups * static_cast<int>(Pick(generator, 2, groups > 1 ? 12 : 40));
  shape.nope = static_cast<int>(Pick(generator, 1, 20));
  shape.rope = 2 * static_cast<int>(Pick(generator, 1, 6));
  shape.value = static_cast<int>(Pick(generator, 1, 20));
  RopeOptions& rope = shape.rope_options;
  rope.theta = OneOf(generator, {10000.0, 100.0});
  rope.layout = OneOf(generator, {RopeLayout::kHalfSplit, RopeLayout::kInterleaved});
  if (Pick(generator, 0, 2) == 0) {
    YarnScaling yarn;
    yarn.factor = OneOf(generator, {2.0, 40.0});
    yarn.original_positions = 32;
    yarn.mscale = 0.7;
    yarn.mscale_all_dim = OneOf(generator, {0.0, 0.7, 1.0});
    rope.yarn = yarn;
  }
  return shape;
}

TplaFactors RandomFactors(int groups, bool local_norm, std::mt19937_64& generator) {
  TplaFactors factors;
  std::uniform_real_distribution<double> near_one(0.7, 1.3);
  for (int i = 0; i < groups; ++i) factors.softmax_multiplier.push_back(static_cast<float>(near_one(generator)));
  if (Pick(generator, 0, 2) == 0) factors.softmax_multiplier.clear();
  for (int i = 0; local_norm && i < groups; ++i) factors.energy_share.push_back(near_one(generator) / (1.3 * groups));
  factors.out_scale = OneOf(generator, {1.0f, 0.75f});
  return factors;
}

// Draws events over sequences that start with `tokens` tokens each.
std::vector<Event> RandomEvents(std::vector<int64_t> tokens, std::mt19937_64& generator) {
  std::vector<bool> alive(tokens.size(), true);
  const auto any = [&]() -> int64_t {
    std::vector<int64_t> ids;
    for (size_t i = 0; i < alive.size(); ++i) {
      if (alive[i]) ids.push_back(static_cast<int64_t>(i));
    }
    return ids[Pick(generator, 0, std::ssize(ids) - 1)];
  };
  std::vector<Event> events;
  const int64_t steps = Pick(generator, 4, 7);
  for (int64_t i = 0; i < steps; ++i) {
    Event step;
    for (size_t s = 0; s < tokens.size(); ++s) {
      if (!alive[s] || Pick(generator, 0, 4) == 0) continue;
      const int64_t rows =
          std::min(OneOf<int64_t>(generator, {0, 1, 1, Pick(generator, 1, 7)}), kMostTokens - tokens[s]);
      step.step.push_back({static_cast<SequenceId>(s), rows});
      tokens[s] += rows;
    }
    std::shuffle(step.step.begin(), step.step.end(), generator);
    events.push_back(step);
    Event change;
    change.sequence = any();
    change.tokens = Pick(generator, 0, tokens[change.sequence]);
    switch (Pick(generator, 0, 5)) {
      case 0:
        change.kind = Event::Kind::kFork;
        tokens.push_back(change.tokens);
        alive.push_back(true);
        break;
      case 1:
      case 2:
        change.kind = Event::Kind::kTruncate;
        change.tokens = std::max(change.tokens, tokens[change.sequence] - 3);
        tokens[change.sequence] = change.tokens;
        break;
      case 3:
        if (std::ranges::count(alive, true) == 1) continue;
        change.kind = Event::Kind::kRelease;
        alive[change.sequence] = false;
        break;
      default:
        continue;
    }
    events.push_back(change);
  }
  return events;
}

int64_t TokensOf(const std::vector<Event>& events) {
  int64_t tokens = 0;
  for (const Event& event : events) {
    for (const StepTokens& entry : event.step) tokens += entry.tokens;
  }
  return tokens;
}

LatentCase RandomCase(DecodeMethod method, int ranks, const std::string& strategy, std::mt19937_64& generator) {
  LatentCase problem;
  MlaDecoderOptions& options = problem.options;
  options.method = method;
  bool local_norm = false;
  if (method == DecodeMethod::kTpla) {
    do options.groups = OneOf(generator, {1, 2, 4, ranks});
    while (ranks % options.groups != 0);
    local_norm = strategy.empty() && Pick(generator, 0, 1) == 0;  // a prefill normalises exactly
  }
  problem.shape = RandomShape(options.groups, generator);
  options.layers = static_cast<int>(Pick(generator, 1, 2));
  options.block_tokens = static_cast<int>(Pick(generator, 1, 9));
  options.page_tokens = static_cast<int>(Pick(generator, 1, 8));
  options.cache_dtype = OneOf(generator, {DType::kFloat32, DType::kBFloat16});
  options.compute = OneOf(generator, {DType::kFloat32, DType::kBFloat16});
  options.max_positions = kMostTokens;
  for (int layer = 0; layer < options.layers; ++layer) {
    problem.layers.emplace_back(problem.shape, generator());
    problem.factors.push_back(method == DecodeMethod::kTpla ? RandomFactors(options.groups, local_norm, generator)
                                                            : TplaFactors());
  }
  problem.strategy = strategy;
  problem.prefix.resize(Pick(generator, 1, 4));
  for (int64_t& tokens : problem.prefix) tokens = strategy.empty() ? 0 : Pick(generator, 0, 25);
  if (!strategy.empty()) ++problem.prefix.front();  // a prefill of nothing is no prefill
  problem.events = RandomEvents(problem.prefix, generator);
  // Whatever is alive, and a page more per sequence for what is begun.
  options.pages = 12 * (kMostTokens / options.page_tokens + 2);
  problem.hidden = problem.layers[0].Hidden(Sum(problem.prefix) + TokensOf(problem.events));
  for (double& value : problem.hidden.values) value = static_cast<float>(value);
  return problem;
}

reference::Dense RowsOf(const reference::Dense& dense, const std::vector<int64_t>& rows) {
  reference::Dense picked(std::ssize(rows), dense.columns);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::ranges::copy(dense.row(rows[i]), picked.values.begin() + static_cast<int64_t>(i) * dense.columns);
  }
  return picked;
}

// What the events do to lists of rows of `hidden`; calls `at_step` with the lists after every step's growth.
template <typename AtStep>
Status Replay(const LatentCase& problem, AtStep at_step) {
  std::vector<std::vector<int64_t>> rows(problem.prefix.size());
  int64_t next = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int64_t t = 0; t < problem.prefix[i]; ++t) rows[i].push_back(next++);
  }
  for (const Event& event : problem.events) {
    switch (event.kind) {
      case Event::Kind::kStep:
        for (const StepTokens& entry : event.step) {
          for (int64_t t = 0; t < entry.tokens; ++t) rows[entry.sequence].push_back(next++);
        }
        TESSERA_RETURN_IF_ERROR(at_step(event, rows));
        break;
      case Event::Kind::kFork: {
        std::vector<int64_t> child(rows[event.sequence].begin(), rows[event.sequence].begin() + event.tokens);
        rows.push_back(std::move(child));
        break;
      }
      case Event::Kind::kTruncate:
        rows[event.sequence].resize(event.tokens);
        break;
      case Event::Kind::kRelease:
        rows[event.sequence].clear();
        break;
    }
  }
  return absl::OkStatus();
}

// The tokens of one document of a packed sequence that each rank has, token by token.
StatusOr<Layout> DocumentLayout(const Layout& packed, Range tokens) {
  std::vector<std::vector<Segment>> ranks(packed.ranks());
  for (int rank = 0; rank < packed.ranks(); ++rank) {
    for (int64_t row = 0; row < packed.rows(rank); ++row) {
      const auto token = static_cast<int64_t>(packed.ToGlobal(rank, LocalToken{row}));
      if (token >= tokens.begin && token < tokens.end) ranks[rank].push_back({token - tokens.begin, 1, 1});
    }
  }
  return Layout::FromSegments(tokens.size(), std::move(ranks));
}

// Prefills all first sequences at once and hands them over.
StatusOr<std::vector<SequenceId>> Prefill(Communicator& comm, const LatentCase& problem,
                                          const MlaDecoderOptions& decoding, MlaDecoder& decoder,
                                          PrefillResult* result) {
  const MlaShape& shape = problem.shape;
  const int64_t tokens = Sum(problem.prefix);
  std::vector<int64_t> boundaries{0};
  for (const int64_t length : problem.prefix) boundaries.push_back(boundaries.back() + length);
  MlaPrefillOptions options;
  options.compute = decoding.compute;
  options.max_positions = decoding.max_positions;
  TESSERA_ASSIGN_OR_RETURN(const auto prefill, MlaPrefill::Create(comm, shape, options));
  for (const RandomLayer& layer : problem.layers) TESSERA_RETURN_IF_ERROR(prefill->AddLayer(layer.weights));
  TESSERA_ASSIGN_OR_RETURN(const Mask mask, Mask::Documents(tokens, boundaries, SliceType::kCausal));
  PlanOptions planning;
  planning.strategy = problem.strategy;
  planning.ranks = comm.size();
  TESSERA_ASSIGN_OR_RETURN(const PlanSpec spec,
                           MakePlanSpec(MlaProblem(shape, tokens, mask, decoding.cache_dtype), planning));
  TESSERA_RETURN_IF_ERROR(prefill->UsePlan(spec));

  std::vector<Layout> layouts;
  for (size_t i = 0; i < problem.prefix.size(); ++i) {
    TESSERA_ASSIGN_OR_RETURN(Layout layout, DocumentLayout(spec.query_layout, {boundaries[i], boundaries[i + 1]}));
    layouts.push_back(std::move(layout));
  }
  const int64_t rows = spec.query_layout.rows(comm.rank());
  std::vector<int64_t> own, positions;
  std::vector<size_t> documents;
  for (int64_t row = 0; row < rows; ++row) {
    own.push_back(static_cast<int64_t>(spec.query_layout.ToGlobal(comm.rank(), LocalToken{row})));
    size_t document = 0;
    while (boundaries[document + 1] <= own.back()) ++document;
    documents.push_back(document);
    positions.push_back(own.back() - boundaries[document]);
  }
  const std::vector<float> hidden = Floats(RowsOf(problem.hidden, own), 0, rows);
  const int width = shape.cache_width();
  std::vector<std::vector<std::byte>> storage;
  std::vector<DenseRows> dense;
  for (size_t layer = 0; layer < problem.layers.size(); ++layer) {
    std::vector<float> out(rows * shape.hidden, NAN), cache_rows(rows * width, NAN);
    TESSERA_RETURN_IF_ERROR(
        prefill->Attend(static_cast<int>(layer), hidden.data(), positions, out.data(), cache_rows.data()));
    for (int64_t row = 0; result != nullptr && row < rows; ++row) {
      const int64_t at = static_cast<int64_t>(layer) * tokens + own[row];
      std::copy_n(out.data() + row * shape.hidden, shape.hidden, result->output.data() + at * shape.hidden);
      std::copy_n(cache_rows.data() + row * width, width, result->cache_rows.data() + at * width);
    }
    for (size_t document = 0; document < problem.prefix.size(); ++document) {
      const int64_t count = layouts[document].rows(comm.rank());
      auto& bytes = storage.emplace_back(count * width * SizeInBytes(decoding.cache_dtype));
      int64_t next = 0;
      for (int64_t row = 0; row < rows; ++row) {
        if (documents[row] != document) continue;
        for (int c = 0; c < width; ++c) {
          StoreFromFloat(bytes.data(), decoding.cache_dtype, next++, cache_rows[row * width + c]);
        }
      }
      dense.push_back({ConstTensorView::Dense(bytes.data(), decoding.cache_dtype, count, 1, width), {}});
    }
  }
  return decoder.TakeOver(layouts, dense);
}

}  // namespace

std::string LatentCase::ToString() const {
  std::string text = absl::StrFormat(
      "%s g=%d D=%d h=%d q=%d C=%d dn=%d dr=%d dv=%d %s %s, cache %s compute %s, pages of %d, blocks of %d, %d layers",
      std::string(Name(options.method)), options.groups, shape.hidden, shape.heads, shape.query_rank, shape.latent,
      shape.nope, shape.rope, shape.value,
      shape.rope_options.layout == RopeLayout::kInterleaved ? "interleaved" : "half split",
      shape.rope_options.yarn ? "yarn" : "no yarn", std::string(Name(options.cache_dtype)),
      std::string(Name(options.compute)), options.page_tokens, options.block_tokens, options.layers);
  if (!factors[0].energy_share.empty()) text += " local norm";
  if (!strategy.empty()) absl::StrAppend(&text, ", prefill by ", strategy, ":");
  for (const int64_t tokens : prefix) absl::StrAppend(&text, " ", tokens);
  for (const Event& event : events) {
    if (event.kind == Event::Kind::kStep) {
      text += "; step";
      for (const StepTokens& entry : event.step) absl::StrAppend(&text, " ", entry.sequence, "+", entry.tokens);
    } else {
      const char* const names[] = {"step", "fork", "truncate", "release"};
      absl::StrAppend(&text, "; ", names[static_cast<int>(event.kind)], " ", event.sequence, " at ", event.tokens);
    }
  }
  return text;
}

LatentCase RandomLatentCase(DecodeMethod method, int ranks, std::mt19937_64& generator) {
  return RandomCase(method, ranks, "", generator);
}

LatentCase RandomPrefilledCase(DecodeMethod method, int ranks, const std::string& strategy,
                               std::mt19937_64& generator) {
  return RandomCase(method, ranks, strategy, generator);
}

MlaDecoderOptions OneRank(const MlaDecoderOptions& options) {
  MlaDecoderOptions one = options;
  one.method = DecodeMethod::kHead;
  one.groups = 1;
  return one;
}

PrefillResult EmptyPrefill(const LatentCase& problem) {
  const int64_t rows = Sum(problem.prefix) * std::ssize(problem.layers);
  return {std::vector<float>(rows * problem.shape.hidden, NAN),
          std::vector<float>(rows * problem.shape.cache_width(), NAN)};
}

int64_t RowsHeld(const MlaDecoderOptions& options, int ranks, int rank, int64_t tokens) {
  if (options.method == DecodeMethod::kHead || options.method == DecodeMethod::kTpla) return tokens;
  int64_t rows = 0;
  for (int64_t token = 0; token < tokens; ++token) rows += token / options.block_tokens % ranks == rank;
  return rows;
}

Status RunLatentRank(Communicator& comm, const LatentCase& problem, const MlaDecoderOptions& options,
                     std::vector<float>& output, PrefillResult* prefill) {
  const MlaShape& shape = problem.shape;
  output.clear();
  TESSERA_ASSIGN_OR_RETURN(const auto decoder, MlaDecoder::Create(comm, shape, options));
  for (size_t i = 0; i < problem.layers.size(); ++i) {
    const bool sliced = options.method == DecodeMethod::kTpla;
    TESSERA_RETURN_IF_ERROR(decoder->AddLayer(problem.layers[i].weights, sliced ? problem.factors[i] : TplaFactors()));
  }
  std::vector<SequenceId> ids;
  if (problem.strategy.empty()) {
    for (size_t i = 0; i < problem.prefix.size(); ++i) ids.push_back(decoder->Start());
  } else {
    TESSERA_ASSIGN_OR_RETURN(ids, Prefill(comm, problem, options, *decoder, prefill));
  }
  const auto attend = [&](int layer, const std::vector<float>& hidden, std::vector<float>& out) {
    return decoder->Attend(layer, hidden.data(), out.data());
  };
  return RunEvents(comm, problem, options, *decoder, std::move(ids), attend, output);
}

StatusOr<std::vector<double>> ExactSteps(const LatentCase& problem, const MlaDecoderOptions& options) {
  std::vector<double> exact;
  std::vector<reference::MlaWeights64> weights;
  for (const RandomLayer& layer : problem.layers) weights.push_back(reference::ToDense(layer.weights));
  const auto compute = [&](const Event& event, const std::vector<std::vector<int64_t>>& rows) -> Status {
    for (size_t layer = 0; layer < weights.size(); ++layer) {
      const TplaFactors& factors = problem.factors[layer];
      for (const StepTokens& entry : event.step) {
        if (entry.tokens == 0) continue;
        const std::vector<int64_t>& history = rows[entry.sequence];
        const reference::Dense hidden = RowsOf(problem.hidden, history);
        const std::vector<int64_t> positions = Positions(hidden.rows);
        StatusOr<reference::Dense> out;
        if (options.method == DecodeMethod::kTpla) {
          reference::TplaOptions tpla;
          tpla.groups = options.groups;
          tpla.mu.assign(factors.softmax_multiplier.begin(), factors.softmax_multiplier.end());
          tpla.norm = factors.energy_share.empty() ? reference::LatentNorm::kExact : reference::LatentNorm::kLocal;
          tpla.energy_share = factors.energy_share;
          tpla.out_scale = factors.out_scale;
          out = reference::TplaLayer(problem.shape, weights[layer], hidden, positions, entry.tokens, tpla);
        } else {
          out = reference::MlaLayer(problem.shape, weights[layer], hidden, positions, entry.tokens,
                                    reference::MlaForm::kExpanded);
        }
        TESSERA_RETURN_IF_ERROR(out.status());
        exact.insert(exact.end(), out->values.begin(), out->values.end());
      }
    }
    return absl::OkStatus();
  };
  TESSERA_RETURN_IF_ERROR(Replay(problem, compute));
  return exact;
}

namespace {

// Rows of every document of every layer, one after the other.
template <typename Compute>
StatusOr<std::vector<double>> PerDocument(const LatentCase& problem, Compute compute) {
  std::vector<double> exact;
  for (const RandomLayer& layer : problem.layers) {
    const reference::MlaWeights64 weights = reference::ToDense(layer.weights);
    int64_t next = 0;
    for (const int64_t tokens : problem.prefix) {
      const reference::Dense hidden = RowsOf(problem.hidden, Positions(tokens, next));
      TESSERA_ASSIGN_OR_RETURN(const reference::Dense out, compute(weights, hidden, Positions(tokens)));
      exact.insert(exact.end(), out.values.begin(), out.values.end());
      next += tokens;
    }
  }
  return exact;
}

}  // namespace

StatusOr<std::vector<double>> ExactPrefill(const LatentCase& problem) {
  return PerDocument(problem, [&](const auto& weights, const auto& hidden, const auto& positions) {
    return reference::MlaLayer(problem.shape, weights, hidden, positions, hidden.rows, reference::MlaForm::kExpanded);
  });
}

StatusOr<std::vector<double>> ExactCacheRows(const LatentCase& problem) {
  return PerDocument(problem, [&](const auto& weights, const auto& hidden, const auto& positions) {
    return reference::MlaCache(problem.shape, weights, hidden, positions);
  });
}

RelativeErrors ErrorsOf(const std::vector<float>& values, const std::vector<double>& exact) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (values.size() != exact.size()) return {kInfinity, kInfinity};
  if (exact.empty()) return {};
  double squares = 0, size = 0, most = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double error = std::abs(values[i] - exact[i]);
    squares += error * error;
    size += exact[i] * exact[i];
    most = std::isnan(error) ? kInfinity : std::max(most, error);
  }
  const double scale = std::sqrt(size / static_cast<double>(exact.size()));
  return {std::isinf(most) ? kInfinity : std::sqrt(squares / size), most / scale};
}

std::string Compare(const RelativeErrors& error, const RelativeErrors& plain, const MlaDecoderOptions& options) {
  constexpr double kFloor = 4 * 0x1p-24;
  const bool rounded = options.cache_dtype != DType::kFloat32 || options.compute != DType::kFloat32;
  const double explained = rounded ? 0.025 : 1.5e-6;
  if (plain.rms <= explained && error.rms <= 2 * plain.rms + kFloor && error.max <= 2 * plain.max + 4 * kFloor) {
    return "";
  }
  return absl::StrFormat("relative error rms %.3g max %.3g; plain rms %.3g max %.3g, of which rounding explains %.3g",
                         error.rms, error.max, plain.rms, plain.max, explained);
}

}  // namespace tessera::latent_test
