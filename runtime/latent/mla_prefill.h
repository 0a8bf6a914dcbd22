// Exact prefill of latent attention over ranks: every rank holds all weights and its own tokens, keys and values travel
// as any plan says.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "kernels/mla.h"
#include "partition/planner.h"
#include "runtime/base/status.h"
#include "runtime/device/stream.h"
#include "runtime/engine/attention.h"
#include "runtime/latent/mla_projections.h"

namespace tessera {

// The attention problem of the expanded form: `tokens` queries and keys of `heads` heads, widths dn + dr and dv, MLA's
// scale.
Problem MlaProblem(const MlaShape& shape, int64_t tokens, const Mask& mask, DType dtype);

struct MlaPrefillOptions {
  DType compute = DType::kFloat32;  // of the projections: fp32, or bf16 with fp32 sums
  int64_t max_positions = 0;        // positions that RoPE serves
  std::string kernel;
  int threads = 1;
};

// One rank's end. Not thread-safe.
class MlaPrefill {
 public:
  // `comm` outlives this.
  static StatusOr<std::unique_ptr<MlaPrefill>> Create(Communicator& comm, const MlaShape& shape,
                                                      const MlaPrefillOptions& options);
  // Layers are numbered in the order they are added. Copies the weights.
  Status AddLayer(const MlaWeights& weights);

  // Collective. `spec` is a plan of MlaProblem for what comes next; its query and key layouts must be the same
  // (InvalidArgument otherwise).
  Status UsePlan(const PlanSpec& spec);
  // Collective, synchronous; after UsePlan. The rank's rows, in the layout's order:
  //   hidden [rows, D] and out [rows, D] fp32; positions [rows] of the tokens within their documents;
  //   cache_rows [rows, C + dr] fp32: normalised latent and rotated rope key, what a cache holds of these tokens.
  // OutOfRange when a position is beyond max_positions.
  Status Attend(int layer, const float* hidden, std::span<const int64_t> positions, float* out, float* cache_rows);

  const Attention& attention() const { return *attention_; }

 private:
  MlaPrefill(Communicator& comm, const MlaShape& shape, const MlaPrefillOptions& options);

  Communicator& comm_;
  MlaShape shape_;
  MlaPrefillOptions options_;
  RopeTable rope_;
  std::vector<MlaProjections> layers_;
  PlanSpec spec_;
  std::unique_ptr<Attention> attention_;
  CpuStream stream_;
};

}  // namespace tessera
