// The fp64 oracle of one latent attention layer: expanded, absorbed, and with its latent cut into groups (TPLA). Slow,
// simple, whole layer on one device, and written apart from the fp32 operators that are judged by it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/mla.h"

namespace tessera::reference {

// A dense row-major matrix; absent weights have no rows.
struct Dense {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> values;  // [rows, columns]
  Dense() = default;
  Dense(int64_t rows_in, int64_t columns_in) : rows(rows_in), columns(columns_in), values(rows_in * columns_in) {}
  double& operator()(int64_t row, int64_t column) { return values[row * columns + column]; }
  double operator()(int64_t row, int64_t column) const { return values[row * columns + column]; }
  std::span<const double> row(int64_t index) const { return {values.data() + index * columns, size_t(columns)}; }
};
Dense ToDense(const MatrixView& view);

// MlaWeights in fp64, so that reparameterised weights can be used before they are rounded. [out, in].
struct MlaWeights64 {
  Dense query, query_down, query_norm, query_up, kv_down, kv_norm, kv_up, output;
};
MlaWeights64 ToDense(const MlaWeights& weights);

enum class LatentNorm : uint8_t {
  kExact,  // over all C columns
  kLocal,  // over a group's columns: RMS(c) is taken for RMS(c_i) / sqrt(g p_i), p_i the group's energy share
};

// How the latent is cut. Group i of g holds columns [i C / g, (i + 1) C / g) and the whole rope key, and serves all
// heads with a softmax of its own; the outputs of the groups are added. g = 1 with mu 1 is MLA itself.
struct TplaOptions {
  int groups = 1;          // divides C
  std::vector<double> mu;  // [g] factor on a group's latent logits; empty = ones
  LatentNorm norm = LatentNorm::kExact;
  std::vector<double> energy_share;  // [g], for kLocal
  double out_scale = 1.0;            // on the sum of the groups
  // The groups' latent logits are summed before one softmax, which is exact for mu 1: the check of the cut itself.
  bool share_logits = false;
};

enum class MlaForm : uint8_t { kExpanded, kAbsorbed };

// Output [T, D] of the last T tokens, causal. `hidden`: [S, D], all tokens up to and including the queries; row t is at
// `positions[t]`, increasing. T = query_tokens <= S.
// InvalidArgument when shapes disagree or g does not divide C.
StatusOr<Dense> MlaLayer(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden,
                         std::span<const int64_t> positions, int64_t query_tokens, MlaForm form);
StatusOr<Dense> TplaLayer(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden,
                          std::span<const int64_t> positions, int64_t query_tokens, const TplaOptions& options);

// What a cache holds of each token: [S, C + dr], the normalised latent with gamma (exact norm), then the rotated key.
StatusOr<Dense> MlaCache(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden,
                         std::span<const int64_t> positions);
// What calibration sees: [S, C], the normalised latent without gamma.
StatusOr<Dense> MlaLatents(const MlaShape& shape, const MlaWeights64& weights, const Dense& hidden);

}  // namespace tessera::reference
