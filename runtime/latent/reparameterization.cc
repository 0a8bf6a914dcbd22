#include "runtime/latent/reparameterization.h"

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "runtime/base/counter_random.h"

namespace tessera {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowMajorFloat = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Eigen::Map<const RowMajor> AsEigen(const Matrix64& matrix) {
  return {matrix.values.data(), matrix.rows, matrix.columns};
}

Matrix64 FromEigen(const RowMajor& matrix) {
  return {matrix.rows(), matrix.cols(), {matrix.data(), matrix.data() + matrix.size()}};
}

Matrix64 Zeros(int64_t rows, int64_t columns) {
  return {rows, columns, std::vector<double>(rows * columns)};
}

RowMajor AsDouble(const MatrixView& view) {
  RowMajor matrix(view.rows, view.columns);
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int64_t column = 0; column < view.columns; ++column) matrix(row, column) = view.At(row, column);
  }
  return matrix;
}

constexpr std::array<std::pair<LatentTransform, std::string_view>, 4> kNames = {
    {{LatentTransform::kIdentity, "identity"},
     {LatentTransform::kHadamard, "hadamard"},
     {LatentTransform::kPca, "pca"},
     {LatentTransform::kCustom, "matrix"}}};

}  // namespace

std::string_view Name(LatentTransform transform) {
  return std::ranges::find(kNames, transform, &decltype(kNames)::value_type::first)->second;
}

StatusOr<LatentTransform> ParseLatentTransform(std::string_view name) {
  const auto found = std::ranges::find(kNames, name, &decltype(kNames)::value_type::second);
  if (found != kNames.end()) return found->first;
  return absl::InvalidArgumentError(
      absl::StrCat("transform \"", std::string(name), "\" is unknown; allowed: identity, hadamard, pca, matrix"));
}

LatentMoment::LatentMoment(int latent) : sum_(Zeros(latent, latent)), total_(latent) {}

StatusOr<LatentMoment> LatentMoment::FromSums(Matrix64 sum, std::vector<double> total, int64_t tokens) {
  if (sum.rows != sum.columns || std::ssize(total) != sum.rows || std::ssize(sum.values) != sum.rows * sum.columns) {
    return absl::InvalidArgumentError(absl::StrCat("second moment is [", sum.rows, ", ", sum.columns,
                                                   "] and first moment [", total.size(), "]; needed: [C, C] and [C]"));
  }
  if (tokens < 1) return absl::InvalidArgumentError(absl::StrCat("tokens is ", tokens, "; allowed: 1 or more"));
  const auto matrix = AsEigen(sum);
  if (!matrix.allFinite() || !std::ranges::all_of(total, [](double value) { return std::isfinite(value); })) {
    return absl::InvalidArgumentError("moments hold a value that is not finite");
  }
  if ((matrix - matrix.transpose()).cwiseAbs().maxCoeff() > 1e-6 * matrix.cwiseAbs().maxCoeff()) {
    return absl::InvalidArgumentError("the second moment is not symmetric");
  }
  LatentMoment moment(0);
  moment.tokens_ = tokens;
  moment.sum_ = FromEigen(0.5 * (matrix + matrix.transpose()));
  moment.total_ = std::move(total);
  return moment;
}

void LatentMoment::Add(std::span<const float> latents) {
  const int64_t rows = sum_.rows == 0 ? 0 : std::ssize(latents) / sum_.rows;
  if (rows == 0) return;
  const RowMajor values = Eigen::Map<const RowMajorFloat>(latents.data(), rows, sum_.rows).cast<double>();
  Eigen::Map<RowMajor>(sum_.values.data(), sum_.rows, sum_.columns).noalias() += values.transpose() * values;
  Eigen::Map<Eigen::RowVectorXd>(total_.data(), sum_.rows) += values.colwise().sum();
  tokens_ += rows;
}

QueryMoment::QueryMoment(int heads, int nope) : heads_(heads), nope_(nope), sums_(heads, Zeros(nope, nope)) {}

void QueryMoment::Add(std::span<const float> queries) {
  const int64_t width = int64_t{heads_} * nope_;
  const int64_t rows = width == 0 ? 0 : std::ssize(queries) / width;
  if (rows == 0) return;
  const Eigen::Map<const RowMajorFloat> values(queries.data(), rows, width);
  for (int head = 0; head < heads_; ++head) {
    const RowMajor part = values.middleCols(int64_t{head} * nope_, nope_).cast<double>();
    Eigen::Map<RowMajor>(sums_[head].values.data(), nope_, nope_).noalias() += part.transpose() * part;
  }
  tokens_ += rows;
}

Matrix64 QueryMoment::Absorbed(const MlaShape& shape, const MlaWeights& weights) const {
  const RowMajor up = AsDouble(weights.kv_up) * AsDouble(weights.kv_norm).col(0).asDiagonal();
  RowMajor sum = RowMajor::Zero(shape.latent, shape.latent);
  for (int head = 0; head < heads_; ++head) {
    const auto keys = up.middleRows(int64_t{head} * (shape.nope + shape.value), nope_);  // [dn, C]
    sum.noalias() += keys.transpose() * (AsEigen(sums_[head]) * keys);
  }
  return FromEigen(sum);
}

Matrix64 IdentityBasis(int latent) {
  Matrix64 basis = Zeros(latent, latent);
  for (int i = 0; i < latent; ++i) basis(i, i) = 1.0;
  return basis;
}

StatusOr<Matrix64> HadamardBasis(int latent, uint64_t seed) {
  if (latent < 1 || !std::has_single_bit(static_cast<unsigned>(latent))) {
    return absl::InvalidArgumentError(
        absl::StrCat("a Hadamard matrix of width ", latent, "; allowed: latent widths that are powers of two"));
  }
  std::vector<float> normals(latent);
  FillNormal(seed, 0, std::vector<Segment>{{0, 1, 1}},
             TensorView::Dense(normals.data(), DType::kFloat32, 1, 1, latent));
  const double magnitude = 1.0 / std::sqrt(static_cast<double>(latent));
  Matrix64 basis = Zeros(latent, latent);
  for (int row = 0; row < latent; ++row) {
    // Signs on the rows shuffle what the columns of H add up; on the columns they would change nothing but signs.
    const double sign = normals[row] < 0 ? -magnitude : magnitude;
    for (int column = 0; column < latent; ++column) {
      basis(row, column) = std::popcount(static_cast<unsigned>(row & column)) % 2 == 0 ? sign : -sign;
    }
  }
  return basis;
}

StatusOr<Matrix64> PcaBasis(const LatentMoment& moment) {
  const int64_t latent = moment.sum().rows;
  if (moment.tokens() < latent) {
    return absl::InvalidArgumentError(
        absl::StrCat("PCA over ", moment.tokens(), " tokens; needed: at least the ", latent, " columns of the latent"));
  }
  Eigen::MatrixXd mean = AsEigen(moment.sum()) / static_cast<double>(moment.tokens());
  if (!mean.allFinite()) return absl::InvalidArgumentError("calibration latents hold a value that is not finite");
  // Keeps directions that the text never used apart from rounding; it moves no eigenvector.
  mean.diagonal().array() += 0.01 * mean.diagonal().mean();
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(mean);
  if (solver.info() != Eigen::Success) return absl::InternalError("the eigenvectors of the latents did not converge");
  RowMajor basis = solver.eigenvectors().rowwise().reverse();  // Eigen has them ascending
  for (Eigen::Index column = 0; column < basis.cols(); ++column) {
    Eigen::Index largest = 0;
    basis.col(column).cwiseAbs().maxCoeff(&largest);
    if (basis(largest, column) < 0) basis.col(column) *= -1.0;  // eigenvectors have no sign of their own
  }
  return FromEigen(basis);
}

Status CheckOrthogonal(const Matrix64& basis, int latent) {
  if (basis.rows != latent || basis.columns != latent) {
    return absl::InvalidArgumentError(
        absl::StrCat("the basis is [", basis.rows, ", ", basis.columns, "]; needed: [", latent, ", ", latent, "]"));
  }
  const auto u = AsEigen(basis);
  const double error = (u.transpose() * u - Eigen::MatrixXd::Identity(latent, latent)).cwiseAbs().maxCoeff();
  // Eigen's maximum passes over NaN.
  if (u.allFinite() && error <= 1e-10) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("the basis is not orthogonal: U^T U is off by %.1e; allowed: 1e-10", error));
}

LatentWeights Reparameterize(const MlaShape& shape, const MlaWeights& weights, const Matrix64& basis) {
  const auto u = AsEigen(basis);
  RowMajor down = AsDouble(weights.kv_down);
  down.topRows(shape.latent) = (u.transpose() * down.topRows(shape.latent)).eval();
  const RowMajor up = AsDouble(weights.kv_up) * AsDouble(weights.kv_norm).col(0).asDiagonal() * u;
  return {FromEigen(down), FromEigen(up)};
}

std::vector<double> ColumnEnergy(const LatentMoment& moment, const Matrix64& basis) {
  const auto u = AsEigen(basis);
  Eigen::VectorXd energy = (AsEigen(moment.sum()) * u).cwiseProduct(u).colwise().sum();
  energy = energy.cwiseMax(0.0);  // rounding below zero
  const double total = energy.sum();
  // Latents that are all zero have no energy to share unevenly.
  energy = total > 0 ? Eigen::VectorXd(energy / total)
                     : Eigen::VectorXd(Eigen::VectorXd::Constant(u.cols(), 1.0 / u.cols()));
  return {energy.data(), energy.data() + energy.size()};
}

std::vector<double> EnergyShares(const LatentMoment& moment, const Matrix64& basis, int groups) {
  const std::vector<double> energy = ColumnEnergy(moment, basis);
  const int64_t width = std::ssize(energy) / groups;
  std::vector<double> shares(groups);
  for (int64_t column = 0; column < width * groups; ++column) shares[column / width] += energy[column];
  return shares;
}

std::vector<GroupFit> FitGroups(const LatentMoment& moment, const Matrix64& queries, const Matrix64& basis,
                                int groups) {
  const auto u = AsEigen(basis);
  const auto tokens = static_cast<double>(std::max<int64_t>(moment.tokens(), 1));
  const Eigen::Map<const Eigen::VectorXd> total(moment.total().data(), std::ssize(moment.total()));
  const Eigen::MatrixXd covariance = AsEigen(moment.sum()) / tokens - total * total.transpose() / (tokens * tokens);
  // Sums over all pairs of (Q . c)^2 and of products of slices need the two second moments only:
  // sum (Q_a . c_a)(Q_b . c_b) = tr(M_ab^T K_ab) for blocks M of the queries' and K of the latents' moment.
  const Eigen::MatrixXd products = (u.transpose() * AsEigen(queries) * u).cwiseProduct(u.transpose() * covariance * u);
  const int64_t width = u.cols() / groups;
  const double full = products.sum();
  std::vector<GroupFit> fits(groups);
  for (int group = 0; group < groups && full > 0; ++group) {
    const double own = products.block(group * width, group * width, width, width).sum();
    const double cross = products.middleRows(group * width, width).sum();  // of the partial with the full logit
    GroupFit& fit = fits[group];
    // A slice that no query looks at has nothing to scale.
    if (own > 1e-15 * full) fit.mu = cross / own;
    fit.error = std::sqrt(std::max(0.0, full - 2 * cross + own) / full);
    fit.fitted_error = std::sqrt(std::max(0.0, full - 2 * fit.mu * cross + fit.mu * fit.mu * own) / full);
  }
  return fits;
}

std::vector<int> PossibleGroups(int latent, int most) {
  std::vector<int> groups;
  for (int g = 2; g <= std::min(latent, most); ++g) {
    if (latent % g == 0) groups.push_back(g);
  }
  return groups;
}

}  // namespace tessera
