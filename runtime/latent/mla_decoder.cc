#include "runtime/latent/mla_decoder.h"

#include "collectives/agreement.h"

namespace tessera {

MlaDecoder::MlaDecoder(Communicator& comm, const MlaShape& shape, const MlaDecoderOptions& options,
                       const MlaDecodeSetup& setup, PagedCache cache)
    : comm_(comm),
      shape_(shape),
      options_(options),
      setup_(setup),
      rope_(shape.rope_options, shape.rope, options.max_positions),
      sequences_(comm, setup.sharding, options.max_positions, std::move(cache)) {}

StatusOr<std::unique_ptr<MlaDecoder>> MlaDecoder::Create(Communicator& comm, const MlaShape& shape,
                                                         const MlaDecoderOptions& options) {
  TESSERA_ASSIGN_OR_RETURN(const MlaDecodeSetup setup, MlaDecodeSetup::Make(shape, options, comm.size(), comm.rank()));
  StatusOr<PagedCache> cache = PagedCache::Create(setup.cache);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, cache.status(), "creating the cache"));
  auto decoder = std::unique_ptr<MlaDecoder>(new MlaDecoder(comm, shape, options, setup, *std::move(cache)));
  DecodeOptions attention;
  attention.kernel = options.kernel;
  attention.threads = options.threads;
  attention.scale = shape.Scale();
  TESSERA_ASSIGN_OR_RETURN(decoder->attention_, DecodeAttention::Create(comm, setup.spec, attention));
  TESSERA_ASSIGN_OR_RETURN(decoder->slices_, SliceExchange::Create(comm, setup.spec));
  return decoder;
}

Status MlaDecoder::AddLayer(const MlaWeights& weights, const TplaFactors& factors) {
  if (static_cast<int>(layers_.size()) == options_.layers) {
    return absl::FailedPreconditionError(absl::StrCat("the decoder has its ", options_.layers, " layers already"));
  }
  TESSERA_ASSIGN_OR_RETURN(const SliceFactors own, setup_.FactorsOf(factors, comm_.rank()));
  TESSERA_ASSIGN_OR_RETURN(MlaProjections maps,
                           MlaProjections::Create(shape_, weights, setup_.share, MlaForm::kAbsorbed, options_.compute));
  if (own.energy_share) maps.UseLocalNorm(*own.energy_share);
  layers_.push_back({std::move(maps), own});
  return absl::OkStatus();
}

StatusOr<std::vector<SequenceId>> MlaDecoder::TakeOver(const std::vector<Layout>& layouts,
                                                       std::span<const DenseRows> rows) {
  ReshardSpec spec;
  spec.shape = LatentRow(shape_, options_.cache_dtype);
  for (const Layout& layout : layouts) spec.tokens.push_back(layout.tokens());
  for (int rank = 0; rank < comm_.size(); ++rank) {
    spec.from.ranks.push_back(rank);
    spec.to.ranks.push_back(rank);
  }
  spec.from.layouts = layouts;
  spec.to.sharding = setup_.sharding;
  TESSERA_ASSIGN_OR_RETURN(const std::unique_ptr<CacheReshard> reshard,
                           CacheReshard::Create(comm_, spec, &sequences_.cache(), {.layers = options_.layers}));
  ReshardSource source;
  source.rows = rows;
  TESSERA_RETURN_IF_ERROR(reshard->Move({0, options_.layers}, source));
  std::vector<SequenceId> started;
  const std::vector<SequenceId> local = reshard->TakeSequences();
  for (size_t i = 0; i < local.size(); ++i) started.push_back(sequences_.Add(local[i], layouts[i].tokens()));
  return started;
}

Status MlaDecoder::BeginStep(std::span<const StepTokens> step) {
  TESSERA_RETURN_IF_ERROR(sequences_.BeginStep(step));
  stats_ = {};
  return absl::OkStatus();
}

int64_t MlaDecoder::weight_bytes() const {
  int64_t bytes = 0;
  for (const Layer& layer : layers_) bytes += layer.maps.weight_bytes();
  return bytes;
}

}  // namespace tessera
