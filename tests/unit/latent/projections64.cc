#include "tests/unit/latent/projections64.h"

#include <cmath>

namespace tessera::latent_test {
namespace {

using reference::Dense;

// y = x W^T for rows [first, first + rows) of W.
Dense Product(const Dense& x, const Dense& weight, int64_t first, int64_t rows) {
  Dense y(x.rows, rows);
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t o = 0; o < rows; ++o) {
      for (int64_t i = 0; i < x.columns; ++i) y(r, o) += x(r, i) * weight(first + o, i);
    }
  }
  return y;
}

double SumOfSquares(const Dense& x, int64_t row, Range columns) {
  double sum = 0;
  for (int64_t c = columns.begin; c < columns.end; ++c) sum += x(row, c) * x(row, c);
  return sum;
}

}  // namespace

double RoundTo(DType dtype, double value) {
  std::byte stored[4];
  StoreFromFloat(stored, dtype, 0, static_cast<float>(value));
  return LoadAsFloat(stored, dtype, 0);
}

Dense Rounded(Dense values, DType dtype) {
  for (double& value : values.values) value = RoundTo(dtype, value);
  return values;
}

StoredWeights::StoredWeights(const MlaWeights& weights, DType dtype) : view_(weights) {
  for (MatrixView* matrix : {&view_.query, &view_.query_down, &view_.query_norm, &view_.query_up, &view_.kv_down,
                             &view_.kv_norm, &view_.kv_up, &view_.output}) {
    if (matrix->empty()) continue;
    auto& bytes = storage_.emplace_back(matrix->rows * matrix->columns * SizeInBytes(dtype));
    for (int64_t i = 0; i < matrix->rows * matrix->columns; ++i) {
      StoreFromFloat(bytes.data(), dtype, i, LoadAsFloat(matrix->data, matrix->dtype, i));
    }
    *matrix = {bytes.data(), dtype, matrix->rows, matrix->columns};
  }
}

Projections64::Projections64(const ProjectionCase& c, const MlaWeights& weights)
    : case_(c), weights_(reference::ToDense(weights)) {
  // The norms' vectors stay as they are.
  for (Dense* matrix : {&weights_.query, &weights_.query_down, &weights_.query_up, &weights_.kv_down, &weights_.kv_up,
                        &weights_.output}) {
    *matrix = Rounded(std::move(*matrix), c.compute);
  }
}

void Projections64::Rotate(int64_t row, double* pairs) const {
  const RopeOptions& options = case_.shape.rope_options;
  const RopeFrequencies rope = ComputeRopeFrequencies(options, case_.shape.rope);
  const bool interleaved = options.layout == RopeLayout::kInterleaved;
  const int half = case_.shape.rope / 2;
  for (int i = 0; i < half; ++i) {
    double& a = pairs[interleaved ? 2 * i : i];
    double& b = pairs[interleaved ? 2 * i + 1 : i + half];
    const double angle = static_cast<double>(case_.positions[row]) * rope.frequency[i];
    const double c = rope.attention_factor * std::cos(angle), s = rope.attention_factor * std::sin(angle);
    const double first = a * c - b * s;
    b = b * c + a * s;
    a = first;
  }
}

Dense Projections64::CacheRows(const Dense& hidden) const {
  const MlaShape& shape = case_.shape;
  const Range columns = case_.setup.share.latent_columns;
  const Dense down = Product(Rounded(hidden, case_.compute), weights_.kv_down, 0, shape.cache_width());
  Dense rows(case_.rows(), columns.size() + shape.rope);
  for (int64_t r = 0; r < rows.rows; ++r) {
    const double squares = SumOfSquares(down, r, case_.energy_share ? columns : Range{0, shape.latent});
    const double mean = squares / shape.latent / case_.energy_share.value_or(1.0);
    const double rms = std::sqrt(mean + double{shape.norm_epsilon});
    for (int64_t c = 0; c < columns.size(); ++c) {
      rows(r, c) = down(r, columns.begin + c) * weights_.kv_norm(columns.begin + c, 0) / rms;
    }
    for (int64_t c = 0; c < shape.rope; ++c) rows(r, columns.size() + c) = down(r, shape.latent + c);
    Rotate(r, rows.values.data() + (r + 1) * rows.columns - shape.rope);
  }
  return rows;
}

Dense Projections64::Query(const Dense& hidden) const {
  const MlaShape& shape = case_.shape;
  const HeadRange heads = case_.setup.share.query_heads;
  const int64_t width = shape.qk_width();
  Dense x = Rounded(hidden, case_.compute);
  if (shape.query_rank > 0) {
    x = Product(x, weights_.query_down, 0, shape.query_rank);
    for (int64_t r = 0; r < x.rows; ++r) {
      const double mean = SumOfSquares(x, r, {0, x.columns}) / static_cast<double>(x.columns);
      const double rms = std::sqrt(mean + double{shape.norm_epsilon});
      for (int64_t i = 0; i < x.columns; ++i) x(r, i) *= weights_.query_norm(i, 0) / rms;
    }
  }
  const Dense& map = shape.query_rank > 0 ? weights_.query_up : weights_.query;
  Dense all = Product(x, map, heads.begin * width, heads.size() * width);
  for (int64_t r = 0; r < all.rows; ++r) {
    for (int h = 0; h < heads.size(); ++h) Rotate(r, all.values.data() + (r * heads.size() + h) * width + shape.nope);
  }
  all.rows *= heads.size();
  all.columns = width;
  return all;
}

Dense Projections64::Absorbed(const Dense& query, double multiplier) const {
  const MlaShape& shape = case_.shape;
  const Range columns = case_.setup.share.latent_columns;
  const HeadRange heads = case_.setup.share.absorbed_heads;
  Dense result(query.rows, columns.size() + shape.rope);
  for (int64_t i = 0; i < query.rows; ++i) {
    const int64_t first = (heads.begin + i % heads.size()) * int64_t{shape.nope + shape.value};
    for (int64_t c = 0; c < columns.size(); ++c) {
      for (int64_t n = 0; n < shape.nope; ++n) {
        result(i, c) += multiplier * RoundTo(case_.compute, query(i, n)) * weights_.kv_up(first + n, columns.begin + c);
      }
    }
    for (int64_t c = 0; c < shape.rope; ++c) result(i, columns.size() + c) = query(i, shape.nope + c);
  }
  return result;
}

Dense Projections64::Value(const Dense& attended) const {
  const MlaShape& shape = case_.shape;
  const Range columns = case_.setup.share.latent_columns;
  const HeadRange heads = case_.setup.share.value_heads, given = case_.setup.attended_heads;
  Dense result(case_.rows() * heads.size(), shape.value);
  for (int64_t i = 0; i < result.rows; ++i) {
    const int64_t row = i / heads.size(), head = heads.begin + i % heads.size();
    const int64_t from = row * given.size() + head - given.begin;
    const int64_t first = head * (shape.nope + shape.value) + shape.nope;
    for (int64_t v = 0; v < shape.value; ++v) {
      for (int64_t c = 0; c < columns.size(); ++c) {
        result(i, v) += RoundTo(case_.compute, attended(from, c)) * weights_.kv_up(first + v, columns.begin + c);
      }
    }
  }
  return result;
}

Dense Projections64::Output(const Dense& value, double scale) const {
  const MlaShape& shape = case_.shape;
  const HeadRange heads = case_.setup.share.output_heads;
  Dense result(case_.rows(), shape.hidden);
  for (int64_t r = 0; r < result.rows; ++r) {
    for (int64_t d = 0; d < shape.hidden; ++d) {
      for (int64_t i = 0; i < heads.size() * int64_t{shape.value}; ++i) {
        const double x = value(r * heads.size() + i / shape.value, i % shape.value);
        result(r, d) += scale * RoundTo(case_.compute, x) * weights_.output(d, heads.begin * int64_t{shape.value} + i);
      }
    }
  }
  return result;
}

int64_t Projections64::weight_bytes() const {
  const MlaShape& shape = case_.shape;
  const MlaShare& share = case_.setup.share;
  const int64_t columns = share.latent_columns.size(), queries = int64_t{share.query_heads.size()} * shape.qk_width();
  int64_t elements = int64_t{shape.cache_width()} * shape.hidden;
  if (queries > 0) {
    elements += shape.query_rank > 0 ? shape.query_rank * (shape.hidden + queries) : queries * shape.hidden;
  }
  elements += share.absorbed_heads.size() * shape.nope * columns;
  elements += share.value_heads.size() * shape.value * columns;
  elements += int64_t{share.output_heads.size()} * shape.value * shape.hidden;
  return elements * static_cast<int64_t>(SizeInBytes(case_.compute));
}

}  // namespace tessera::latent_test
