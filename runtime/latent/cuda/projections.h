// MlaProjections (runtime/latent/mla_projections.h) on a GPU, in the absorbed form: the dense maps around the attention
// of one layer, as far as one rank computes them.
#pragma once

#include <optional>

#include "kernels/cuda/linear.h"
#include "kernels/mla.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/latent/cuda/layer_tensors.h"
#include "runtime/latent/cuda/upload.h"
#include "runtime/latent/mla_share.h"

namespace tessera {

// What every layer's projections use, and where they are submitted.
struct ProjectionContext {
  cuda::Cublas& cublas;
  const float* rope_table = nullptr;   // device: cuda::RopeTableValues
  const int64_t* positions = nullptr;  // [rows] device, within the table
  CUstream_st* stream = nullptr;
};

// Every call is asynchronous, allocates nothing and may be captured. Tensors are views of the step's rows.
class CudaMlaProjections {
 public:
  // Submits copies of the share's weights, rounded to `compute` (fp32, bf16 or fp16; sums are fp32). With
  // `energy_share` the norm is estimated as by MlaProjections::UseLocalNorm. Errors as SelectWeights; InvalidArgument
  // for a dtype, ResourceExhausted without the memory.
  static StatusOr<CudaMlaProjections> Create(const MlaShape& shape, const MlaWeights& weights, const MlaShare& share,
                                             DType compute, std::optional<double> energy_share, DeviceUploads& uploads);

  // hidden [rows, 1, D] fp32, device, dense -> what the next two read: `hidden` itself, or t.hidden.
  StatusOr<ConstTensorView> RoundHidden(const ConstTensorView& hidden, const LatentTensors& t,
                                        CUstream_st* stream) const;
  // hidden -> t.cache_rows: this share's columns of the normalised latents, and the rotated rope key.
  Status ProjectCacheRows(const ConstTensorView& hidden, const LatentTensors& t, const ProjectionContext& on) const;
  // hidden -> t.query, rotated.
  Status ProjectQuery(const ConstTensorView& hidden, const LatentTensors& t, const ProjectionContext& on) const;
  // t.all_query -> t.absorbed, its latent columns times `multiplier`.
  Status Absorb(float multiplier, const LatentTensors& t, const ProjectionContext& on) const;
  // The value heads of t.attended, which begin with its head `first_head` -> t.value.
  Status ProjectValue(int first_head, const LatentTensors& t, const ProjectionContext& on) const;
  // t.own_value -> t.summand, times `scale`; zeros on a rank without output heads.
  Status ProjectOutput(float scale, const LatentTensors& t, const ProjectionContext& on) const;

  int64_t weight_bytes() const;

 private:
  struct Map {
    DeviceBuffer memory;
    cuda::LinearMap map;  // batch 0: the share has no such heads
  };
  CudaMlaProjections() = default;
  static StatusOr<Map> Upload(const std::vector<MatrixView>& weights, DType compute, bool transposed,
                              std::string_view what, DeviceUploads& uploads);
  Status NormaliseRows(const LatentTensors& t, CUstream_st* stream) const;

  MlaShape shape_;
  MlaShare share_;
  Map query_, query_down_, query_up_, kv_down_, output_, absorb_, value_up_;
  DeviceBuffer query_norm_;  // [rq] fp32
  DeviceBuffer kv_norm_;     // [C] fp32; with a local norm [Cs], times what makes the slice's norm the estimate
  bool local_norm_ = false;
  float kv_epsilon_ = 0.0f;
};

}  // namespace tessera
