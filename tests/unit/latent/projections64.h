// What one rank's projections of a layer (runtime/latent/mla_projections.h) give in fp64, each by itself, written from
// docs/latent.md. Inputs and weights are rounded to the dtype that the maps compute in; nothing between them is.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/latent/decode_setup.h"
#include "tests/unit/latent/layer.h"

namespace tessera::latent_test {

double RoundTo(DType dtype, double value);
reference::Dense Rounded(reference::Dense values, DType dtype);

// A layer's weights in a dtype of its checkpoint.
class StoredWeights {
 public:
  StoredWeights(const MlaWeights& weights, DType dtype);
  StoredWeights(const StoredWeights&) = delete;
  StoredWeights& operator=(const StoredWeights&) = delete;
  const MlaWeights& view() const { return view_; }

 private:
  std::vector<std::vector<std::byte>> storage_;
  MlaWeights view_;
};

// A rank's part of a layer, and one step.
struct ProjectionCase {
  MlaShape shape;
  MlaDecodeSetup setup;
  DType compute = DType::kFloat32;     // of the maps
  DType checkpoint = DType::kFloat32;  // of the weights as they are stored
  std::vector<int64_t> positions;      // one per row of the step
  std::optional<double> energy_share;  // set: the norm is estimated from the share's columns

  int64_t rows() const { return static_cast<int64_t>(positions.size()); }
};

// Matrices are [rows * heads, width].
class Projections64 {
 public:
  Projections64(const ProjectionCase& c, const MlaWeights& weights);

  // hidden [rows, D] -> [rows, Cs + dr]
  reference::Dense CacheRows(const reference::Dense& hidden) const;
  // hidden [rows, D] -> [rows * query heads, dn + dr]
  reference::Dense Query(const reference::Dense& hidden) const;
  // query [rows * absorbed heads, dn + dr] -> [rows * absorbed heads, Cs + dr]
  reference::Dense Absorbed(const reference::Dense& query, double multiplier) const;
  // attended [rows * attended heads, Cs] -> [rows * value heads, dv]
  reference::Dense Value(const reference::Dense& attended) const;
  // value [rows * output heads, dv] -> [rows, D]
  reference::Dense Output(const reference::Dense& value, double scale) const;

  int64_t weight_bytes() const;  // of the matrices that the share has, in the compute dtype

 private:
  void Rotate(int64_t row, double* pairs) const;

  const ProjectionCase& case_;
  reference::MlaWeights64 weights_;
};

}  // namespace tessera::latent_test
