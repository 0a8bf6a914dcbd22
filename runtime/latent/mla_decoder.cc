#include "runtime/latent/mla_decoder.h"

#include <algorithm>
#include <cmath>

#include "collectives/agreement.h"

namespace tessera {
namespace {

DecodeSpec SpecOf(const MlaShape& shape, const MlaDecoderOptions& options, int ranks, int latent_columns) {
  DecodeSpec spec;
  spec.method = options.method;
  spec.ranks = ranks;
  spec.groups = options.groups;
  spec.heads = shape.heads;
  spec.kv_heads = 1;
  spec.qk_width = latent_columns + shape.rope;
  spec.v_width = latent_columns;
  spec.dtype = options.cache_dtype;
  return spec;
}

CacheRowShape RowShapeOf(const MlaShape& shape, DType dtype) {
  return {.latent = true, .kv_heads = 1, .key_width = shape.cache_width(), .value_width = shape.latent, .dtype = dtype};
}

Status CheckFactors(const TplaFactors& factors, const MlaDecoderOptions& options) {
  const auto check = [&](size_t size, std::string_view name) {
    if (size == 0 || size == static_cast<size_t>(options.groups)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(name), " has ", size, " entries; there are ", options.groups, " latent groups"));
  };
  TESSERA_RETURN_IF_ERROR(check(factors.softmax_multiplier.size(), "softmax_multiplier"));
  TESSERA_RETURN_IF_ERROR(check(factors.energy_share.size(), "energy_share"));
  for (double share : factors.energy_share) {
    if (!(share >= 0 && share <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat("energy_share ", share, ": allowed are values in [0, 1]"));
    }
  }
  for (float multiplier : factors.softmax_multiplier) {
    if (!std::isfinite(multiplier)) return absl::InvalidArgumentError("softmax_multiplier is not finite");
  }
  return absl::OkStatus();
}

}  // namespace

MlaDecoder::MlaDecoder(Communicator& comm, const MlaShape& shape, const MlaDecoderOptions& options)
    : comm_(comm), shape_(shape), options_(options), rope_(shape.rope_options, shape.rope, options.max_positions) {}

StatusOr<std::unique_ptr<MlaDecoder>> MlaDecoder::Create(Communicator& comm, const MlaShape& shape,
                                                         const MlaDecoderOptions& options) {
  TESSERA_RETURN_IF_ERROR(Validate(shape));
  if (options.max_positions < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_positions is ", options.max_positions, "; it must be at least 1"));
  }
  auto decoder = std::unique_ptr<MlaDecoder>(new MlaDecoder(comm, shape, options));
  CacheSharding& sharding = decoder->sharding_;
  sharding.axis = SpecOf(shape, options, comm.size(), shape.latent).axis();
  sharding.ranks = comm.size();
  sharding.groups = options.groups;
  sharding.block_tokens = options.block_tokens;
  sharding.query_heads = shape.heads;
  const CacheRowShape row = RowShapeOf(shape, options.cache_dtype);
  TESSERA_RETURN_IF_ERROR(Validate(sharding, row));

  const int rank = comm.rank();
  decoder->share_.latent_columns = sharding.LatentColumns(rank, shape.latent);
  const DecodeSpec spec = SpecOf(shape, options, comm.size(), static_cast<int>(decoder->share_.latent_columns.size()));
  TESSERA_RETURN_IF_ERROR(Validate(spec));
  MlaShare& share = decoder->share_;
  share.query_heads = spec.ProjectedHeads(rank);
  share.absorbed_heads = spec.QueryHeads(rank);
  decoder->attended_heads_ = spec.OutputHeads(rank);
  // Under the tree every rank gets every head; the projections after it are shared all the same. Under TPLA the values
  // of slices are added up before they are shared.
  share.output_heads = spec.SummandHeads(rank);
  share.value_heads = options.method == DecodeMethod::kTpla ? decoder->attended_heads_ : share.output_heads;

  CacheOptions cache;
  cache.shape = sharding.LocalShape(rank, row);
  cache.layers = options.layers;
  cache.page_tokens = options.page_tokens;
  cache.pages = options.pages;
  StatusOr<PagedCache> made = PagedCache::Create(cache);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, made.status(), "creating the cache"));
  decoder->cache_ = std::make_unique<PagedCache>(*std::move(made));

  DecodeOptions attention;
  attention.kernel = options.kernel;
  attention.threads = options.threads;
  attention.scale = shape.Scale();
  TESSERA_ASSIGN_OR_RETURN(decoder->attention_, DecodeAttention::Create(comm, spec, attention));
  TESSERA_ASSIGN_OR_RETURN(decoder->slices_, SliceExchange::Create(comm, spec));
  return decoder;
}

Status MlaDecoder::AddLayer(const MlaWeights& weights, const TplaFactors& factors) {
  if (static_cast<int>(layers_.size()) == options_.layers) {
    return absl::FailedPreconditionError(absl::StrCat("the decoder has its ", options_.layers, " layers already"));
  }
  TESSERA_RETURN_IF_ERROR(CheckFactors(factors, options_));
  TESSERA_ASSIGN_OR_RETURN(MlaProjections maps,
                           MlaProjections::Create(shape_, weights, share_, MlaForm::kAbsorbed, options_.compute));
  Layer layer{std::move(maps), 1.0f, factors.out_scale};
  if (sharding_.axis == CacheAxis::kLatent) {
    const int group = comm_.rank() / (comm_.size() / options_.groups);
    if (!factors.softmax_multiplier.empty()) layer.softmax_multiplier = factors.softmax_multiplier[group];
    if (!factors.energy_share.empty()) layer.maps.UseLocalNorm(factors.energy_share[group]);
  }
  layers_.push_back(std::move(layer));
  return absl::OkStatus();
}

SequenceId MlaDecoder::Start() {
  sequences_[next_sequence_] = {cache_->Start(), 0};
  return next_sequence_++;
}

StatusOr<SequenceId> MlaDecoder::Fork(SequenceId parent, int64_t tokens) {
  const auto it = sequences_.find(parent);
  if (it == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", parent));
  if (tokens < 0 || tokens > it->second.tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("fork at ", tokens, " tokens: sequence ", parent, " has ", it->second.tokens));
  }
  TESSERA_ASSIGN_OR_RETURN(const SequenceId local,
                           cache_->Fork(it->second.local, sharding_.LocalRows(comm_.rank(), tokens)));
  sequences_[next_sequence_] = {local, tokens};
  return next_sequence_++;
}

Status MlaDecoder::Truncate(SequenceId sequence, int64_t tokens) {
  const auto it = sequences_.find(sequence);
  if (it == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", sequence));
  if (tokens < 0 || tokens > it->second.tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("truncate to ", tokens, " tokens: sequence ", sequence, " has ", it->second.tokens));
  }
  TESSERA_RETURN_IF_ERROR(cache_->Truncate(it->second.local, sharding_.LocalRows(comm_.rank(), tokens)));
  EndStep();
  it->second.tokens = tokens;
  return absl::OkStatus();
}

Status MlaDecoder::Release(SequenceId sequence) {
  const auto it = sequences_.find(sequence);
  if (it == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", sequence));
  TESSERA_RETURN_IF_ERROR(cache_->Release(it->second.local));
  EndStep();
  sequences_.erase(it);
  return absl::OkStatus();
}

int64_t MlaDecoder::tokens(SequenceId sequence) const {
  const auto it = sequences_.find(sequence);
  return it == sequences_.end() ? 0 : it->second.tokens;
}

Status MlaDecoder::Adopt(SequenceId sequence, int64_t tokens) {
  const auto it = sequences_.find(sequence);
  if (it == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", sequence));
  const int64_t expected = sharding_.LocalRows(comm_.rank(), tokens);
  if (const int64_t rows = cache_->rows(it->second.local); rows != expected) {
    return absl::FailedPreconditionError(
        absl::StrCat("sequence ", sequence, " has ", rows, " local rows; ", tokens, " tokens need ", expected));
  }
  EndStep();
  it->second.tokens = tokens;
  return absl::OkStatus();
}

StatusOr<std::vector<SequenceId>> MlaDecoder::TakeOver(const std::vector<Layout>& layouts,
                                                       std::span<const DenseRows> rows) {
  ReshardSpec spec;
  spec.shape = RowShapeOf(shape_, options_.cache_dtype);
  for (const Layout& layout : layouts) spec.tokens.push_back(layout.tokens());
  for (int rank = 0; rank < comm_.size(); ++rank) {
    spec.from.ranks.push_back(rank);
    spec.to.ranks.push_back(rank);
  }
  spec.from.layouts = layouts;
  spec.to.sharding = sharding_;
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<CacheReshard> reshard,
                           CacheReshard::Create(comm_, spec, cache_.get(), {.layers = options_.layers}));
  ReshardSource source;
  source.rows = rows;
  TESSERA_RETURN_IF_ERROR(reshard->Move({0, options_.layers}, source));
  std::vector<SequenceId> started;
  const std::vector<SequenceId> local = reshard->TakeSequences();
  for (size_t i = 0; i < local.size(); ++i) {
    sequences_[next_sequence_] = {local[i], layouts[i].tokens()};
    started.push_back(next_sequence_++);
  }
  return started;
}

void MlaDecoder::EndStep() {
  in_step_ = false;
  step_.clear();
  positions_.clear();
  visible_.clear();
}

Status MlaDecoder::BeginStep(std::span<const StepTokens> step) {
  EndStep();
  const int rank = comm_.rank();
  const auto grow = [&]() -> Status {
    std::vector<CacheGrowth> growth;
    for (const StepTokens& entry : step) {
      const auto it = sequences_.find(entry.sequence);
      if (it == sequences_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", entry.sequence));
      if (std::ranges::count(step, entry.sequence, &StepTokens::sequence) > 1) {
        return absl::InvalidArgumentError(absl::StrCat("sequence ", entry.sequence, " is named twice in one step"));
      }
      if (entry.tokens < 0) return absl::InvalidArgumentError(absl::StrCat("tokens ", entry.tokens, " < 0"));
      const int64_t before = it->second.tokens;
      if (before + entry.tokens > rope_.positions()) {
        return absl::OutOfRangeError(
            absl::StrFormat("sequence %d would have %d tokens; the model supports %d positions", entry.sequence,
                            before + entry.tokens, rope_.positions()));
      }
      growth.push_back(
          {it->second.local, sharding_.LocalRows(rank, before + entry.tokens) - sharding_.LocalRows(rank, before)});
    }
    return cache_->Append(growth);
  };
  std::vector<int64_t> local_rows;
  for (const StepTokens& entry : step) {
    const auto it = sequences_.find(entry.sequence);
    local_rows.push_back(it == sequences_.end() ? 0 : cache_->rows(it->second.local));
  }
  const Status local = grow();
  if (Status agreed = AgreeOnStatus(comm_, local, "making room in the cache"); !agreed.ok()) {
    // Ranks that had room give it back, so that the sequences are what they were everywhere.
    if (local.ok()) {
      for (size_t i = 0; i < step.size(); ++i) {
        TESSERA_RETURN_IF_ERROR(cache_->Truncate(sequences_.at(step[i].sequence).local, local_rows[i]));
      }
    }
    return agreed;
  }
  in_step_ = true;
  step_.assign(step.begin(), step.end());
  for (const StepTokens& entry : step) {
    Sequence& sequence = sequences_.at(entry.sequence);
    auto& visible = visible_.emplace_back();
    for (int64_t t = 0; t < entry.tokens; ++t) {
      positions_.push_back(sequence.tokens + t);
      visible.push_back({0, sharding_.LocalRows(rank, sequence.tokens + t + 1)});
    }
    sequence.tokens += entry.tokens;
  }
  stats_ = {};
  return absl::OkStatus();
}

int64_t MlaDecoder::weight_bytes() const {
  int64_t bytes = 0;
  for (const Layer& layer : layers_) bytes += layer.maps.weight_bytes();
  return bytes;
}

}  // namespace tessera
