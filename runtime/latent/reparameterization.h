// Orthogonal changes of basis of the latent space that leave a layer's output unchanged, and what slicing then keeps.
// TPLA: Tang et al., arXiv 2508.15881. Formulas and traps: docs/latent.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/mla.h"
#include "runtime/base/status.h"

namespace tessera {

enum class LatentTransform : uint8_t { kIdentity, kHadamard, kPca, kCustom };
std::string_view Name(LatentTransform transform);
StatusOr<LatentTransform> ParseLatentTransform(std::string_view name);

// A dense row-major fp64 matrix; this header keeps Eigen out of its users.
struct Matrix64 {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> values;
  double& operator()(int64_t row, int64_t column) { return values[row * columns + column]; }
  double operator()(int64_t row, int64_t column) const { return values[row * columns + column]; }
};

// First and second moment of the post-norm latents without gamma, fp64, added up over tokens.
class LatentMoment {
 public:
  explicit LatentMoment(int latent);
  // Sums made elsewhere: `sum` [C, C], `total` [C]. InvalidArgument when shapes disagree, a value is not finite, `sum`
  // is not symmetric, or there are no tokens.
  static StatusOr<LatentMoment> FromSums(Matrix64 sum, std::vector<double> total, int64_t tokens);
  // `latents`: [rows, C] fp32, normalised, before gamma.
  void Add(std::span<const float> latents);
  int64_t tokens() const { return tokens_; }
  const Matrix64& sum() const { return sum_; }                 // [C, C]
  const std::vector<double>& total() const { return total_; }  // [C]

 private:
  int64_t tokens_ = 0;
  Matrix64 sum_;
  std::vector<double> total_;
};

// Second moment of the nope part of the queries, head by head, added up over tokens: what logits are made of.
class QueryMoment {
 public:
  QueryMoment(int heads, int nope);
  // `queries`: [rows, h, dn] fp32.
  void Add(std::span<const float> queries);
  int64_t tokens() const { return tokens_; }
  // [C, C]: sum over tokens and heads of Q Q^T with Q = q Wuk^T diag(gamma), the query that meets latents without
  // gamma.
  Matrix64 Absorbed(const MlaShape& shape, const MlaWeights& weights) const;

 private:
  int heads_, nope_;
  int64_t tokens_ = 0;
  std::vector<Matrix64> sums_;  // [h] of [dn, dn]
};

// U of size [C, C]: columns are the new basis (row-vector convention c' = c U).
//   Hadamard: Sylvester matrix / sqrt(C) times seeded random signs; C must be a power of two (InvalidArgument
//   otherwise). PCA: eigenvectors of the mean second moment damped by 1 % of its mean diagonal, descending; needs at
//   least C tokens.
Matrix64 IdentityBasis(int latent);
StatusOr<Matrix64> HadamardBasis(int latent, uint64_t seed);
StatusOr<Matrix64> PcaBasis(const LatentMoment& moment);
Status CheckOrthogonal(const Matrix64& basis, int latent);  // InvalidArgument unless [C, C] and |U^T U - I| <= 1e-10

// kv_down, kv_norm and kv_up of one layer after folding gamma and U: kv_down[:C] <- U^T kv_down[:C], kv_up <- kv_up
// diag(gamma) U, gamma <- 1. fp64.
struct LatentWeights {
  Matrix64 kv_down;  // [C + dr, D]
  Matrix64 kv_up;    // [h (dn + dv), C]
};
LatentWeights Reparameterize(const MlaShape& shape, const MlaWeights& weights, const Matrix64& basis);

// Energy of the latents per column of the new basis, [C]; sums to 1.
std::vector<double> ColumnEnergy(const LatentMoment& moment, const Matrix64& basis);
// Share of the latents' energy in each of `groups` equal slices of the columns, after the change of basis; sums to 1.
std::vector<double> EnergyShares(const LatentMoment& moment, const Matrix64& basis, int groups);

// What one group's slice knows of the full logit. Logits are q . c over all pairs of a calibration query and a
// calibration token, less their mean over the tokens, because softmax does not see a shift; without the rope term,
// which every group has in full.
struct GroupFit {
  double mu = 1.0;            // the factor on the partial logit that fits the full one best, by least squares
  double error = 0.0;         // rms(full - partial) / rms(full)
  double fitted_error = 0.0;  // rms(full - mu partial) / rms(full), at most `error`
};
// `queries`: QueryMoment::Absorbed. Groups divide C.
std::vector<GroupFit> FitGroups(const LatentMoment& moment, const Matrix64& queries, const Matrix64& basis, int groups);

// The numbers of groups from 2 to `most` that divide C, for error messages and defaults.
std::vector<int> PossibleGroups(int latent, int most);

}  // namespace tessera
