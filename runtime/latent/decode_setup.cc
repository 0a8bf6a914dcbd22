#include "runtime/latent/decode_setup.h"

#include <algorithm>
#include <cmath>

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

Status CheckFactors(const TplaFactors& factors, int groups) {
  const auto check = [&](size_t size, std::string_view name) {
    if (size == 0 || size == static_cast<size_t>(groups)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(name), " has ", size, " entries; there are ", groups, " latent groups"));
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

CacheRowShape LatentRow(const MlaShape& shape, DType dtype) {
  return {.latent = true, .kv_heads = 1, .key_width = shape.cache_width(), .value_width = shape.latent, .dtype = dtype};
}

StatusOr<MlaDecodeSetup> MlaDecodeSetup::Make(const MlaShape& shape, const MlaDecoderOptions& options, int ranks,
                                              int rank) {
  TESSERA_RETURN_IF_ERROR(Validate(shape));
  if (options.max_positions < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_positions is ", options.max_positions, "; it must be at least 1"));
  }
  MlaDecodeSetup setup;
  CacheSharding& sharding = setup.sharding;
  sharding.axis = SpecOf(shape, options, ranks, shape.latent).axis();
  sharding.ranks = ranks;
  sharding.groups = options.groups;
  sharding.block_tokens = options.block_tokens;
  sharding.query_heads = shape.heads;
  const CacheRowShape row = LatentRow(shape, options.cache_dtype);
  TESSERA_RETURN_IF_ERROR(Validate(sharding, row));

  MlaShare& share = setup.share;
  share.latent_columns = sharding.LatentColumns(rank, shape.latent);
  setup.spec = SpecOf(shape, options, ranks, static_cast<int>(share.latent_columns.size()));
  TESSERA_RETURN_IF_ERROR(Validate(setup.spec));
  share.query_heads = setup.spec.ProjectedHeads(rank);
  share.absorbed_heads = setup.spec.QueryHeads(rank);
  setup.attended_heads = setup.spec.OutputHeads(rank);
  // Under the tree every rank gets every head; the projections after it are shared all the same. Under TPLA the values
  // of slices are added up before they are shared.
  share.output_heads = setup.spec.SummandHeads(rank);
  share.value_heads = options.method == DecodeMethod::kTpla ? setup.attended_heads : share.output_heads;

  setup.cache.shape = sharding.LocalShape(rank, row);
  setup.cache.layers = options.layers;
  setup.cache.page_tokens = options.page_tokens;
  setup.cache.pages = options.pages;
  return setup;
}

StatusOr<SliceFactors> MlaDecodeSetup::FactorsOf(const TplaFactors& factors, int rank) const {
  TESSERA_RETURN_IF_ERROR(CheckFactors(factors, sharding.groups));
  SliceFactors own;
  own.out_scale = factors.out_scale;
  if (sharding.axis != CacheAxis::kLatent) return own;
  const int group = rank / (sharding.ranks / sharding.groups);
  if (!factors.softmax_multiplier.empty()) own.softmax_multiplier = factors.softmax_multiplier[group];
  // A slice without energy is kept from dividing by zero: it is scaled to almost nothing, which is what it is.
  if (!factors.energy_share.empty()) own.energy_share = std::max(factors.energy_share[group], 1e-12);
  return own;
}

}  // namespace tessera
