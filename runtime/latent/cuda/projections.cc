#include "runtime/latent/cuda/projections.h"

#include <cmath>
#include <cstring>

#include "kernels/cuda/row_ops.h"
#include "kernels/cuda/steps.h"

namespace tessera {
namespace {

// In the dtype that a map takes: the view itself, or a rounded copy.
StatusOr<ConstTensorView> Rounded(const ConstTensorView& view, const TensorView& copy, CUstream_st* stream) {
  if (copy.dtype == view.dtype) return view;
  TESSERA_RETURN_IF_ERROR(cuda::ScaleRows(view, 1.0f, copy, stream));
  return ConstTensorView(copy);
}

const float* Floats(const DeviceBuffer& buffer) {
  return reinterpret_cast<const float*>(buffer.data());
}

}  // namespace

StatusOr<CudaMlaProjections::Map> CudaMlaProjections::Upload(const std::vector<MatrixView>& weights, DType compute,
                                                             bool transposed, std::string_view what,
                                                             DeviceUploads& uploads) {
  Map made;
  made.map.dtype = compute;
  made.map.batch = static_cast<int>(weights.size());
  made.map.transposed = transposed;
  if (weights.empty()) return made;
  const int64_t each = weights[0].rows * weights[0].columns;
  made.map.in = static_cast<int>(transposed ? weights[0].rows : weights[0].columns);
  made.map.out = static_cast<int>(transposed ? weights[0].columns : weights[0].rows);
  std::vector<std::byte> rounded(weights.size() * each * SizeInBytes(compute));
  int64_t next = 0;
  for (const MatrixView& matrix : weights) {
    const auto bytes = each * static_cast<int64_t>(SizeInBytes(compute));
    if (matrix.dtype == compute) {
      std::memcpy(rounded.data() + next * static_cast<int64_t>(SizeInBytes(compute)), matrix.data, bytes);
      next += each;
      continue;
    }
    for (int64_t i = 0; i < each; ++i) {
      StoreFromFloat(rounded.data(), compute, next++, LoadAsFloat(matrix.data, matrix.dtype, i));
    }
  }
  TESSERA_ASSIGN_OR_RETURN(made.memory, uploads.Add(std::move(rounded), what));
  made.map.weights = made.memory.data();
  return made;
}

StatusOr<CudaMlaProjections> CudaMlaProjections::Create(const MlaShape& shape, const MlaWeights& weights,
                                                        const MlaShare& share, DType compute,
                                                        std::optional<double> energy_share, DeviceUploads& uploads) {
  if (compute == DType::kFloat64) {
    return absl::InvalidArgumentError("cuda projections: compute is fp64; it must be fp32, bf16 or fp16");
  }
  TESSERA_ASSIGN_OR_RETURN(ShareWeights selected, SelectWeights(shape, weights, share, MlaForm::kAbsorbed));
  CudaMlaProjections result;
  result.shape_ = shape;
  result.share_ = share;
  const auto upload = [&](Map& map, const std::vector<MatrixView>& from, std::string_view what,
                          bool transposed = false) -> Status {
    TESSERA_ASSIGN_OR_RETURN(map, Upload(from, compute, transposed, what, uploads));
    return absl::OkStatus();
  };
  TESSERA_RETURN_IF_ERROR(upload(result.kv_down_, selected.kv_down, "kv_down"));
  TESSERA_RETURN_IF_ERROR(upload(result.query_, selected.query, "the queries' weights"));
  TESSERA_RETURN_IF_ERROR(upload(result.query_down_, selected.query_down, "query_down"));
  TESSERA_RETURN_IF_ERROR(upload(result.query_up_, selected.query_up, "query_up"));
  TESSERA_RETURN_IF_ERROR(upload(result.output_, selected.output, "the output's weights"));
  TESSERA_RETURN_IF_ERROR(upload(result.absorb_, selected.absorb, "the keys' part of kv_up", /*transposed=*/true));
  TESSERA_RETURN_IF_ERROR(upload(result.value_up_, selected.value_up, "the values' part of kv_up"));
  TESSERA_ASSIGN_OR_RETURN(result.query_norm_, uploads.Add(selected.query_norm, "query_norm"));

  std::span<float> gamma(selected.kv_norm);
  result.kv_epsilon_ = shape.norm_epsilon;
  if (energy_share) {
    // c gamma / sqrt(|c_slice|^2 / (C p) + e) = c gamma k / sqrt(|c_slice|^2 / Cs + k^2 e) with k^2 = C p / Cs: the
    // norm of the slice's own Cs columns.
    gamma = gamma.subspan(share.latent_columns.begin, share.latent_columns.size());
    const double squared = shape.latent * *energy_share / static_cast<double>(gamma.size());
    for (float& g : gamma) g *= static_cast<float>(std::sqrt(squared));
    result.kv_epsilon_ = static_cast<float>(squared * shape.norm_epsilon);
    result.local_norm_ = true;
  }
  TESSERA_ASSIGN_OR_RETURN(result.kv_norm_, uploads.Add(gamma, "kv_norm"));
  return result;
}

StatusOr<ConstTensorView> CudaMlaProjections::RoundHidden(const ConstTensorView& hidden, const LatentTensors& t,
                                                          CUstream_st* stream) const {
  return Rounded(hidden, t.hidden, stream);
}

Status CudaMlaProjections::NormaliseRows(const LatentTensors& t, CUstream_st* stream) const {
  const auto first = share_.latent_columns.begin;
  const int columns = static_cast<int>(share_.latent_columns.size());
  const TensorView stored = ColumnsOf(t.cache_rows, 0, columns), slice = ColumnsOf(t.kv, first, columns);
  const TensorView whole = ColumnsOf(t.kv, 0, shape_.latent);
  if (local_norm_ || columns == shape_.latent) {
    return cuda::RmsNormRows(slice, Floats(kv_norm_), kv_epsilon_, stored, stream);
  }
  TESSERA_RETURN_IF_ERROR(cuda::RmsNormRows(whole, Floats(kv_norm_), kv_epsilon_, whole, stream));
  return cuda::ScaleRows(slice, 1.0f, stored, stream);
}

Status CudaMlaProjections::ProjectCacheRows(const ConstTensorView& hidden, const LatentTensors& t,
                                            const ProjectionContext& on) const {
  TESSERA_RETURN_IF_ERROR(on.cublas.Apply(kv_down_.map, hidden, 1.0f, t.kv, on.stream));
  TESSERA_RETURN_IF_ERROR(NormaliseRows(t, on.stream));
  const TensorView rope = ColumnsOf(t.kv, shape_.latent, shape_.rope);
  TESSERA_RETURN_IF_ERROR(cuda::RotateRows(rope, on.positions, on.rope_table, shape_.rope_options.layout, on.stream));
  return cuda::ScaleRows(rope, 1.0f, ColumnsOf(t.cache_rows, share_.latent_columns.size(), shape_.rope), on.stream);
}

Status CudaMlaProjections::ProjectQuery(const ConstTensorView& hidden, const LatentTensors& t,
                                        const ProjectionContext& on) const {
  if (share_.query_heads.empty()) return absl::OkStatus();
  if (shape_.query_rank > 0) {
    TESSERA_RETURN_IF_ERROR(on.cublas.Apply(query_down_.map, hidden, 1.0f, t.low, on.stream));
    const TensorView& normed = t.low_rounded.dtype == DType::kFloat32 ? t.low : t.low_rounded;
    TESSERA_RETURN_IF_ERROR(cuda::RmsNormRows(t.low, Floats(query_norm_), shape_.norm_epsilon, normed, on.stream));
    TESSERA_RETURN_IF_ERROR(on.cublas.Apply(query_up_.map, normed, 1.0f, Joined(t.query), on.stream));
  } else {
    TESSERA_RETURN_IF_ERROR(on.cublas.Apply(query_.map, hidden, 1.0f, Joined(t.query), on.stream));
  }
  return cuda::RotateRows(ColumnsOf(t.query, shape_.nope, shape_.rope), on.positions, on.rope_table,
                          shape_.rope_options.layout, on.stream);
}

Status CudaMlaProjections::Absorb(float multiplier, const LatentTensors& t, const ProjectionContext& on) const {
  if (share_.absorbed_heads.empty()) return absl::OkStatus();
  const int columns = static_cast<int>(share_.latent_columns.size());
  TESSERA_ASSIGN_OR_RETURN(const ConstTensorView nope,
                           Rounded(ColumnsOf(t.all_query, 0, shape_.nope), t.nope, on.stream));
  TESSERA_RETURN_IF_ERROR(on.cublas.Apply(absorb_.map, nope, 1.0f, t.latent_query, on.stream));
  TESSERA_RETURN_IF_ERROR(cuda::ScaleRows(t.latent_query, multiplier, ColumnsOf(t.absorbed, 0, columns), on.stream));
  return cuda::ScaleRows(ColumnsOf(t.all_query, shape_.nope, shape_.rope), 1.0f,
                         ColumnsOf(t.absorbed, columns, shape_.rope), on.stream);
}

Status CudaMlaProjections::ProjectValue(int first_head, const LatentTensors& t, const ProjectionContext& on) const {
  if (share_.value_heads.empty()) return absl::OkStatus();
  TESSERA_ASSIGN_OR_RETURN(
      const ConstTensorView latents,
      Rounded(HeadsOf(t.attended, first_head, share_.value_heads.size()), t.latent_rounded, on.stream));
  return on.cublas.Apply(value_up_.map, latents, 1.0f, t.value, on.stream);
}

Status CudaMlaProjections::ProjectOutput(float scale, const LatentTensors& t, const ProjectionContext& on) const {
  if (share_.output_heads.empty()) return cuda::ZeroRows(t.summand, {0, t.summand.rows}, on.stream);
  TESSERA_ASSIGN_OR_RETURN(const ConstTensorView values, Rounded(t.own_value, t.value_rounded, on.stream));
  return on.cublas.Apply(output_.map, Joined(values), scale, t.summand, on.stream);
}

int64_t CudaMlaProjections::weight_bytes() const {
  int64_t bytes = 0;
  for (const Map* map : {&query_, &query_down_, &query_up_, &kv_down_, &output_, &absorb_, &value_up_}) {
    bytes += map->memory.bytes();
  }
  return bytes;
}

}  // namespace tessera
