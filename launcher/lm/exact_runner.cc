#include "launcher/lm/exact_runner.h"

#include <algorithm>

#include "collectives/agreement.h"
#include "partition/planner.h"

namespace tessera::launcher {

StatusOr<LoadedModel> LoadModel(const std::string& directory, DType compute, int threads) {
  TESSERA_ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(directory));
  TESSERA_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(directory));
  TESSERA_ASSIGN_OR_RETURN(LanguageModel language, LanguageModel::Load(checkpoint, config, compute, threads));
  return LoadedModel{std::move(checkpoint), std::move(config), std::move(language)};
}

ExactOptions MakeExactOptions(const ExecutionFlags& flags, const std::string& dtype, const Context& context) {
  ExactOptions options;
  options.strategy = flags.strategy;
  options.ranks_per_node = context.RanksPerNode(context.world->size());
  options.dtype = *ParseDType(dtype);
  options.compute = ProjectionType(options.dtype);
  options.kernel = context.Kernel(flags.kernel);
  options.threads = context.Threads(flags.threads);
  return options;
}

Status CheckAttentionKernel(const ModelConfig& config, const ExactOptions& options) {
  return CheckKernel(MlaProblem(config.attention, 1, Mask(), options.dtype), options.kernel);
}

StatusOr<std::unique_ptr<ExactRunner>> ExactRunner::Create(Communicator& comm, const LoadedModel& model,
                                                           const ExactOptions& options) {
  auto runner = std::unique_ptr<ExactRunner>(new ExactRunner(comm, model, options));
  const auto load = [&]() -> Status {
    MlaPrefillOptions prefill;
    prefill.compute = options.compute;
    prefill.max_positions = model.config.max_positions;
    prefill.kernel = options.kernel;
    prefill.threads = options.threads;
    TESSERA_ASSIGN_OR_RETURN(runner->prefill_, MlaPrefill::Create(comm, model.config.attention, prefill));
    for (int layer = 0; layer < model.config.layers; ++layer) {
      TESSERA_ASSIGN_OR_RETURN(const MlaWeights weights,
                               ReadMlaWeights(model.checkpoint, model.config.attention, layer));
      TESSERA_RETURN_IF_ERROR(runner->prefill_->AddLayer(weights));
    }
    return absl::OkStatus();
  };
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, load(), "loading attention weights"));
  return runner;
}

namespace {

// The layout of one document [begin, end) of a packed sequence.
StatusOr<Layout> LayoutOfDocument(const Layout& packed, Range tokens) {
  std::vector<std::vector<Segment>> ranks(packed.ranks());
  for (int rank = 0; rank < packed.ranks(); ++rank) {
    for (const Segment& segment : packed.segments(rank)) {
      const Range rows = RowsWithin(segment, tokens);
      if (rows.empty()) continue;
      Segment part = Rows(segment, rows);
      part.begin -= tokens.begin;
      ranks[rank].push_back(part);
    }
  }
  return Layout::FromSegments(tokens.size(), std::move(ranks));
}

}  // namespace

StatusOr<ExactResult> ExactRunner::Run(std::span<const std::span<const int>> documents, bool keep_cache_rows) {
  std::vector<int64_t> boundaries{0};
  std::vector<int> packed;
  for (const auto& document : documents) {
    packed.insert(packed.end(), document.begin(), document.end());
    boundaries.push_back(static_cast<int64_t>(packed.size()));
  }
  if (boundaries != planned_boundaries_) {
    TESSERA_ASSIGN_OR_RETURN(const Mask mask, Mask::Documents(boundaries.back(), boundaries, SliceType::kCausal));
    PlanOptions plan;
    plan.strategy = options_.strategy;
    plan.ranks = comm_.size();
    plan.ranks_per_node = options_.ranks_per_node;
    const Problem problem = MlaProblem(model_.config.attention, boundaries.back(), mask, options_.dtype);
    StatusOr<PlanSpec> spec = MakePlanSpec(problem, plan);
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, spec.status(), "choosing a strategy"));
    spec_ = *std::move(spec);
    TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, prefill_->UsePlan(spec_), "creating the attention"));
    planned_boundaries_ = boundaries;
  }

  ExactResult result;
  result.plan = spec_.strategy;
  for (size_t i = 0; i + 1 < boundaries.size(); ++i) {
    TESSERA_ASSIGN_OR_RETURN(Layout layout, LayoutOfDocument(spec_.query_layout, {boundaries[i], boundaries[i + 1]}));
    result.layouts.push_back(std::move(layout));
  }
  std::vector<int> tokens;
  std::vector<int64_t> positions;
  for (const Segment& segment : spec_.query_layout.segments(comm_.rank())) {
    for (int64_t i = 0; i < segment.count; ++i) {
      const int64_t token = segment.token(i);
      // The last boundary at or before the token: empty documents share theirs with the next.
      const auto after = std::upper_bound(boundaries.begin(), boundaries.end(), token);
      const int document = static_cast<int>(after - boundaries.begin()) - 1;
      result.rows.push_back({document, token - boundaries[document]});
      positions.push_back(result.rows.back().position);
      tokens.push_back(packed[token]);
    }
  }
  const int64_t cache_width = model_.config.attention.cache_width();
  std::vector<float> cache_rows(tokens.size() * cache_width);
  const AttendLayer attend = [&](int layer, const float* normed, float* out) -> Status {
    TESSERA_RETURN_IF_ERROR(prefill_->Attend(layer, normed, positions, out, cache_rows.data()));
    if (keep_cache_rows) result.cache_rows.push_back(cache_rows);
    return absl::OkStatus();
  };
  StatusOr<std::vector<float>> hidden = model_.language.Run(tokens, attend);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm_, hidden.status(), "running the model"));
  result.hidden = *std::move(hidden);
  return result;
}

}  // namespace tessera::launcher
