// The dense maps around the attention of one MLA layer, as far as one rank computes them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/linear.h"
#include "kernels/mla.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"

namespace tessera {

// Expanded: keys and values are projected up from the latents (prefill). Absorbed: queries are projected down to the
// latent space instead, and so are outputs back up (decode).
enum class MlaForm : uint8_t { kExpanded, kAbsorbed };

// Which part of a layer a rank computes.
struct MlaShare {
  HeadRange query_heads;     // whose queries it projects
  HeadRange absorbed_heads;  // whose queries it takes into the latent space (absorbed form)
  HeadRange value_heads;     // whose attention output it takes out of the latent space (absorbed form)
  HeadRange output_heads;    // whose values it projects to the hidden state
  Range latent_columns;      // what it keeps of the latent: [0, C), or a slice (TPLA); the expanded form needs all

  static MlaShare Whole(const MlaShape& shape) {
    const HeadRange all{0, shape.heads};
    return {all, all, all, all, {0, shape.latent}};
  }
};

// All matrices are dense, row-major, fp32, host. Not collective. Thread-safe.
class MlaProjections {
 public:
  // Copies the share's weights, rounded to `compute` (fp32, or bf16 with fp32 sums). Errors as Validate and Linear.
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
  // from the share's columns: RMS(c) ~ RMS(slice) / sqrt(C / Cs * energy_share). TPLA's "sliced RMSNorm".
  // A slice without energy is kept from dividing by zero: it is scaled to almost nothing, which is what it is.
  void UseLocalNorm(double energy_share) { local_energy_share_ = std::max(energy_share, 1e-12); }

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
