#include "runtime/latent/mla_prefill.h"

#include <algorithm>

namespace tessera {
namespace {

// A dense tensor of the attention's dtype, from fp32.
class Rounded {
 public:
  Rounded(DType dtype, int64_t rows, int heads, int width)
      : bytes_(rows * heads * width * SizeInBytes(dtype)),
        view_(TensorView::Dense(bytes_.data(), dtype, rows, heads, width)) {}
  void Assign(const std::vector<float>& values) {
    for (size_t i = 0; i < values.size(); ++i) StoreFromFloat(bytes_.data(), view_.dtype, i, values[i]);
  }
  const TensorView& view() const { return view_; }

 private:
  std::vector<std::byte> bytes_;
  TensorView view_;
};

}  // namespace

Problem MlaProblem(const MlaShape& shape, int64_t tokens, const Mask& mask, DType dtype) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = tokens;
  problem.query_heads = problem.kv_heads = shape.heads;
  problem.qk_width = shape.qk_width();
  problem.v_width = shape.value;
  problem.dtype = dtype;
  problem.mask = mask;
  problem.score.scale = shape.Scale();
  return problem;
}

MlaPrefill::MlaPrefill(Communicator& comm, const MlaShape& shape, const MlaPrefillOptions& options)
    : comm_(comm), shape_(shape), options_(options), rope_(shape.rope_options, shape.rope, options.max_positions) {}

StatusOr<std::unique_ptr<MlaPrefill>> MlaPrefill::Create(Communicator& comm, const MlaShape& shape,
                                                         const MlaPrefillOptions& options) {
  TESSERA_RETURN_IF_ERROR(Validate(shape));
  if (options.max_positions < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_positions is ", options.max_positions, "; it must be at least 1"));
  }
  return std::unique_ptr<MlaPrefill>(new MlaPrefill(comm, shape, options));
}

Status MlaPrefill::UsePlan(const PlanSpec& spec) {
  if (!(spec.query_layout == spec.key_layout)) {
    return absl::InvalidArgumentError(
        absl::StrCat("strategy ", spec.strategy, " lays out queries and keys differently; prefill needs one layout"));
  }
  AttentionOptions options;
  options.kernel = options_.kernel;
  options.threads = options_.threads;
  attention_.reset();
  TESSERA_ASSIGN_OR_RETURN(attention_, Attention::Create(comm_, spec, options));
  spec_ = spec;
  return absl::OkStatus();
}

Status MlaPrefill::AddLayer(const MlaWeights& weights) {
  TESSERA_ASSIGN_OR_RETURN(MlaProjections layer, MlaProjections::Create(shape_, weights, MlaShare::Whole(shape_),
                                                                        MlaForm::kExpanded, options_.compute));
  layers_.push_back(std::move(layer));
  return absl::OkStatus();
}

Status MlaPrefill::Attend(int layer, const float* hidden, std::span<const int64_t> positions, float* out,
                          float* cache_rows) {
  if (attention_ == nullptr) return absl::FailedPreconditionError("Attend needs UsePlan first");
  if (layer < 0 || layer >= static_cast<int>(layers_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": there are ", layers_.size()));
  }
  const auto rows = static_cast<int64_t>(positions.size());
  if (const int64_t planned = spec_.query_layout.rows(comm_.rank()); rows != planned) {
    return absl::InvalidArgumentError(
        absl::StrCat("positions has ", rows, " entries; the plan gives this rank ", planned, " rows"));
  }
  const MlaProjections& maps = layers_[layer];
  const int threads = options_.threads;
  const int heads = shape_.heads;
  std::vector<float> query(rows * heads * shape_.qk_width()), key(query.size()), value(rows * heads * shape_.value);
  const auto project = [&]() -> Status {
    if (const auto beyond = std::ranges::find_if(
            positions, [&](int64_t position) { return position < 0 || position >= rope_.positions(); });
        beyond != positions.end()) {
      return absl::OutOfRangeError(
          absl::StrFormat("position %d: the model supports positions 0 to %d", *beyond, rope_.positions() - 1));
    }
    TESSERA_RETURN_IF_ERROR(maps.ProjectCacheRows(hidden, positions, rope_, cache_rows, threads));
    TESSERA_RETURN_IF_ERROR(maps.ProjectQuery(hidden, positions, rope_, query.data(), threads));
    return maps.Expand(cache_rows, rows, key.data(), value.data(), threads);
  };
  TESSERA_RETURN_IF_ERROR(project());
  const DType dtype = spec_.problem.dtype;
  Rounded q(dtype, rows, heads, shape_.qk_width()), k(dtype, rows, heads, shape_.qk_width());
  Rounded v(dtype, rows, heads, shape_.value), o(dtype, rows, heads, shape_.value);
  q.Assign(query);
  k.Assign(key);
  v.Assign(value);
  std::vector<float> lse(rows * heads);
  TESSERA_RETURN_IF_ERROR(attention_->Forward(q.view(), k.view(), v.view(), o.view(),
                                              TensorView::Dense(lse.data(), DType::kFloat32, rows, heads, 1), {},
                                              stream_));
  TESSERA_RETURN_IF_ERROR(stream_.Synchronize());
  for (size_t i = 0; i < value.size(); ++i) value[i] = LoadAsFloat(o.view().data, dtype, i);
  return maps.ProjectOutput(value.data(), rows, out, threads);
}

}  // namespace tessera
