// What a latent decoder is asked for, and what follows from that for one rank: the plan's numbers, the cache's sharding
// and the rank's share of a layer. The same whatever device it runs on.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/mla.h"
#include "partition/decode.h"
#include "runtime/base/status.h"
#include "runtime/engine/cache.h"
#include "runtime/latent/mla_share.h"

namespace tessera {

struct MlaDecoderOptions {
  DecodeMethod method = DecodeMethod::kHead;
  int groups = 1;         // TPLA: latent slices
  int block_tokens = 64;  // methods that shard tokens: consecutive tokens on one rank
  int layers = 1;
  int page_tokens = 64;
  int64_t pages = 0;  // per rank
  DType cache_dtype = DType::kBFloat16;
  DType compute = DType::kBFloat16;  // of the projections: fp32, or bf16 with fp32 sums
  int64_t max_positions = 0;         // positions that RoPE serves
  std::string kernel;                // decode kernel by name; empty = the fastest
  int threads = 1;                   // of CPUs
};

// What TPLA knows of one layer, per latent group; empty vectors mean ones.
struct TplaFactors {
  std::vector<float> softmax_multiplier;  // mu: on the latent part of the logit
  std::vector<double> energy_share;       // of the latents; when set, each slice estimates the norm from itself alone
  float out_scale = 1.0f;
};

// Of one rank's slice.
struct SliceFactors {
  float softmax_multiplier = 1.0f;
  std::optional<double> energy_share;  // above 0
  float out_scale = 1.0f;
};

struct MlaDecodeSetup {
  DecodeSpec spec;
  CacheSharding sharding;
  MlaShare share;
  HeadRange attended_heads;  // whose attention output the rank gets; share.value_heads are among them
  CacheOptions cache;

  // InvalidArgument names the option, e.g. a number of groups that does not divide the latent width, with those that
  // do.
  static StatusOr<MlaDecodeSetup> Make(const MlaShape& shape, const MlaDecoderOptions& options, int ranks, int rank);
  // InvalidArgument names what is wrong with the factors of a layer.
  StatusOr<SliceFactors> FactorsOf(const TplaFactors& factors, int rank) const;
};

// What all ranks' caches hold of a token together.
CacheRowShape LatentRow(const MlaShape& shape, DType dtype);

}  // namespace tessera
