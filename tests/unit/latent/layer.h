// A random layer with gamma away from 1, random hidden states, and random orthogonal matrices.
#pragma once

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/reference/mla.h"
#include "runtime/latent/reparameterization.h"

namespace tessera::latent_test {

class RandomLayer {
 public:
  RandomLayer(const MlaShape& shape, uint64_t seed) : shape(shape), generator_(seed) {
    const int queries = shape.heads * shape.qk_width();
    // Enough spread for softmax to prefer some tokens over others.
    if (shape.query_rank > 0) {
      weights.query_down = Matrix(shape.query_rank, shape.hidden, 1.0);
      weights.query_norm = Gamma(shape.query_rank);
      weights.query_up = Matrix(queries, shape.query_rank, 2.0);
    } else {
      weights.query = Matrix(queries, shape.hidden, 2.0);
    }
    weights.kv_down = Matrix(shape.cache_width(), shape.hidden, 1.0);
    weights.kv_norm = Gamma(shape.latent);
    weights.kv_up = Matrix(shape.heads * (shape.nope + shape.value), shape.latent, 2.0);
    weights.output = Matrix(shape.hidden, shape.heads * shape.value, 1.0);
  }
  reference::Dense Hidden(int64_t tokens) {
    reference::Dense hidden(tokens, shape.hidden);
    for (double& value : hidden.values) value = normal_(generator_);
    return hidden;
  }
  double Normal() { return normal_(generator_); }

  MlaShape shape;
  MlaWeights weights;

 private:
  MatrixView Matrix(int rows, int columns, double spread) {
    std::vector<float>& values =
        storage_.emplace_back(std::make_unique<std::vector<float>>(rows * columns)).operator*();
    for (float& value : values) value = static_cast<float>(spread / std::sqrt(columns) * normal_(generator_));
    return {values.data(), DType::kFloat32, rows, columns};
  }
  MatrixView Gamma(int rows) {
    std::vector<float>& values = storage_.emplace_back(std::make_unique<std::vector<float>>(rows)).operator*();
    for (float& value : values) value = static_cast<float>(1.0 + 0.5 * std::sin(10 * normal_(generator_)));
    return {values.data(), DType::kFloat32, rows, 1};
  }

  std::mt19937_64 generator_;
  std::normal_distribution<double> normal_;
  std::vector<std::unique_ptr<std::vector<float>>> storage_;
};

inline MlaShape TestShape(int query_rank = 0) {
  MlaShape shape;
  shape.hidden = 20;
  shape.heads = 3;
  shape.query_rank = query_rank;
  shape.latent = 8;
  shape.nope = 5;
  shape.rope = 4;
  shape.value = 6;
  return shape;
}

// Rows made orthonormal by Gram and Schmidt, twice for the last digits.
inline Matrix64 RandomOrthogonal(int width, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Matrix64 basis{width, width, std::vector<double>(width * width)};
  for (double& value : basis.values) value = normal(generator);
  for (int row = 0; row < width; ++row) {
    for (int pass = 0; pass < 2; ++pass) {
      for (int other = 0; other < row; ++other) {
        double dot = 0;
        for (int i = 0; i < width; ++i) dot += basis(row, i) * basis(other, i);
        for (int i = 0; i < width; ++i) basis(row, i) -= dot * basis(other, i);
      }
      double norm = 0;
      for (int i = 0; i < width; ++i) norm += basis(row, i) * basis(row, i);
      for (int i = 0; i < width; ++i) basis(row, i) /= std::sqrt(norm);
    }
  }
  return basis;
}

inline reference::Dense ToDense(const Matrix64& matrix) {
  reference::Dense dense(matrix.rows, matrix.columns);
  dense.values = matrix.values;
  return dense;
}

// The layer's weights after a change of basis, unrounded.
inline reference::MlaWeights64 Reparameterized(const RandomLayer& layer, const Matrix64& basis) {
  reference::MlaWeights64 weights = reference::ToDense(layer.weights);
  const LatentWeights latent = Reparameterize(layer.shape, layer.weights, basis);
  weights.kv_down = ToDense(latent.kv_down);
  weights.kv_up = ToDense(latent.kv_up);
  weights.kv_norm.values.assign(layer.shape.latent, 1.0);
  return weights;
}

inline std::vector<int64_t> Positions(int64_t tokens, int64_t first = 0) {
  std::vector<int64_t> positions(tokens);
  for (int64_t t = 0; t < tokens; ++t) positions[t] = first + t;
  return positions;
}

// sqrt(sum (a - b)^2 / sum b^2)
inline double RelativeError(const reference::Dense& a, const reference::Dense& b) {
  if (a.values.size() != b.values.size()) return INFINITY;
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.values.size(); ++i) {
    difference += (a.values[i] - b.values[i]) * (a.values[i] - b.values[i]);
    size += b.values[i] * b.values[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace tessera::latent_test
