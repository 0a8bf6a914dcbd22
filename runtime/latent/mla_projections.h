// The dense maps around the attention of one MLA layer, as far as one rank computes them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/linear.h"
#include "kernels/mla.h"
#include "runtime/base/status.h"
#include "runtime/latent/mla_share.h"

namespace tessera {

// All matrices are dense, row-major, fp32, host. Not collective. Thread-safe.
class MlaProjections {
 public:
  // Copies the share's weights, rounded to `compute` (fp32, or bf16 with fp32 sums). Errors as SelectWeights and
  // Linear.
  static StatusOr<MlaProjections> Create(const MlaShape& shape, const MlaWeights& weights, const MlaShare& share,
                                         MlaForm form, DType compute);

  // hidden [rows, D] -> kv [rows, C + dr]: latents normalised (all columns) and the rope key rotated to its position.
  Status ProjectCacheRows(const float* hidden, std::span<const int64_t> positions, const RopeTable& rope, float* kv,
                          int threads) const;
  // hidden [rows, D] -> query [rows, query heads, dn + dr], rotated.
  Status ProjectQuery(const float* hidden, std::span<const int64_t> positions, const RopeTable& rope, float* query,
                      int threads) const;
  // value [rows, output heads, dv] -> hidden [rows, D]: this rank's summand when it has not all heads.
  Status ProjectOutput(const float* value, int64_t rows, float* hidden, int threads) const;

  // Expanded: kv [rows, C + dr] as ProjectCacheRows gives it -> key [rows, h, dn + dr], value [rows, h, dv].
  Status Expand(const float* kv, int64_t rows, float* key, float* value, int threads) const;

  // Absorbed: query [rows, absorbed heads, dn + dr] -> [rows, absorbed heads, Cs + dr], Cs latent columns of the share.
  Status Absorb(const float* query, int64_t rows, float* absorbed, int threads) const;
  // Absorbed: latent output [rows, value heads, Cs] -> value [rows, value heads, dv].
  Status ProjectValue(const float* latent_output, int64_t rows, float* value, int threads) const;

  // The norm of a whole latent is not known to a rank that holds a slice of it only. With this set, it is estimated
  // from the share's columns: RMS(c) ~ RMS(slice) / sqrt(C / Cs * energy_share), where energy_share > 0. TPLA's
  // "sliced RMSNorm".
  void UseLocalNorm(double energy_share) { local_energy_share_ = energy_share; }

  const MlaShare& share() const { return share_; }
  int latent_columns() const { return static_cast<int>(share_.latent_columns.size()); }
  int64_t weight_bytes() const;

 private:
  MlaProjections() = default;
  void Normalise(std::span<float> latent) const;

  MlaShape shape_;
  MlaShare share_;
  std::vector<float> query_norm_, kv_norm_;
  std::optional<double> local_energy_share_;
  std::optional<Linear> query_, query_down_, query_up_, kv_down_, output_;
  std::optional<Linear> kv_up_;              // expanded
  std::optional<Linear> absorb_, value_up_;  // absorbed; batches over heads
};

}  // namespace tessera
