// One layer of a decode step: projections, the cache's new rows, attention, the sum over ranks.
#include <algorithm>

#include "runtime/base/elapsed.h"
#include "runtime/latent/mla_decoder.h"

namespace tessera {
namespace {

// Adds the time of its scope to a sum.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += SecondsSince(start_); }

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

void MlaDecoder::StoreRows(int layer, const float* kv) {
  const auto& columns = setup_.share.latent_columns;
  const DType dtype = options_.cache_dtype;
  for (const auto& [local, local_row] : sequences_.new_rows()) {
    if (local_row >= 0) {
      std::byte* row = sequences_.cache().Key(layer, local, local_row);
      for (int64_t c = 0; c < columns.size(); ++c) StoreFromFloat(row, dtype, c, kv[columns.begin + c]);
      for (int c = 0; c < shape_.rope; ++c) StoreFromFloat(row, dtype, columns.size() + c, kv[shape_.latent + c]);
    }
    kv += shape_.cache_width();
  }
}

Status MlaDecoder::AttendCache(int layer, const float* query, std::vector<float>& latent_output) {
  const int64_t rows = step_rows();
  const MlaShare& share = setup_.share;
  const int columns = layers_[layer].maps.latent_columns();
  const int query_heads = share.absorbed_heads.size();
  const int output_heads = setup_.attended_heads.size();
  const int width = columns + shape_.rope;
  const DType dtype = options_.cache_dtype;
  std::vector<std::byte> rounded(rows * query_heads * width * SizeInBytes(dtype));
  const float multiplier = layers_[layer].factors.softmax_multiplier;
  for (int64_t i = 0; i < rows * query_heads; ++i) {
    for (int c = 0; c < width; ++c) {
      StoreFromFloat(rounded.data(), dtype, i * width + c, query[i * width + c] * (c < columns ? multiplier : 1.0f));
    }
  }
  latent_output.resize(rows * output_heads * columns);
  std::vector<float> lse(rows * output_heads);
  TESSERA_RETURN_IF_ERROR(attention_->Run(
      TensorView::Dense(rounded.data(), dtype, rows, query_heads, width), sequences_.cache().layer(layer),
      sequences_.Attended(), TensorView::Dense(latent_output.data(), DType::kFloat32, rows, output_heads, columns),
      TensorView::Dense(lse.data(), DType::kFloat32, rows, output_heads, 1)));
  if (share.value_heads == setup_.attended_heads) return absl::OkStatus();
  const int64_t kept = int64_t{share.value_heads.size()} * columns;
  const int64_t first = int64_t{share.value_heads.begin - setup_.attended_heads.begin} * columns;
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(latent_output.data() + r * output_heads * columns + first, kept, latent_output.data() + r * kept);
  }
  latent_output.resize(rows * kept);
  return absl::OkStatus();
}

Status MlaDecoder::Attend(int layer, const float* hidden, float* out) {
  if (layer < 0 || layer >= static_cast<int>(layers_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": there are ", layers_.size()));
  }
  if (!sequences_.in_step()) return absl::FailedPreconditionError("Attend needs BeginStep first");
  const int64_t rows = step_rows();
  const MlaShare& share = setup_.share;
  const int threads = options_.threads;
  const MlaProjections& maps = layers_[layer].maps;
  const Stopwatch total(stats_.seconds);
  std::vector<float> query(rows * share.query_heads.size() * int64_t{shape_.qk_width()});
  {
    const Stopwatch watch(stats_.projection_seconds);
    std::vector<float> kv(rows * shape_.cache_width());
    TESSERA_RETURN_IF_ERROR(maps.ProjectCacheRows(hidden, step_positions(), rope_, kv.data(), threads));
    StoreRows(layer, kv.data());
    TESSERA_RETURN_IF_ERROR(maps.ProjectQuery(hidden, step_positions(), rope_, query.data(), threads));
  }
  const int64_t slice_bytes = slices_.bytes_received();
  {
    const Stopwatch watch(stats_.slice_seconds);
    TESSERA_RETURN_IF_ERROR(slices_.Gather(query, rows, shape_.qk_width()));
  }
  std::vector<float> absorbed(rows * share.absorbed_heads.size() * int64_t{maps.latent_columns() + shape_.rope});
  {
    const Stopwatch watch(stats_.projection_seconds);
    TESSERA_RETURN_IF_ERROR(maps.Absorb(query.data(), rows, absorbed.data(), threads));
  }
  std::vector<float> latent_output;
  {
    const Stopwatch watch(stats_.attention_seconds);
    TESSERA_RETURN_IF_ERROR(AttendCache(layer, absorbed.data(), latent_output));
    stats_.attention_bytes += attention_->stats().traffic.bytes_received;
  }
  std::vector<float> value(rows * share.value_heads.size() * int64_t{shape_.value});
  {
    const Stopwatch watch(stats_.projection_seconds);
    TESSERA_RETURN_IF_ERROR(maps.ProjectValue(latent_output.data(), rows, value.data(), threads));
  }
  {
    const Stopwatch watch(stats_.slice_seconds);
    TESSERA_RETURN_IF_ERROR(slices_.SumOwn(value, rows, shape_.value));
    stats_.slice_bytes += slices_.bytes_received() - slice_bytes;
  }
  std::vector<float> summand(rows * shape_.hidden);
  {
    const Stopwatch watch(stats_.projection_seconds);
    TESSERA_RETURN_IF_ERROR(maps.ProjectOutput(value.data(), rows, summand.data(), threads));
    for (float& x : summand) x *= layers_[layer].factors.out_scale;
  }
  const Stopwatch watch(stats_.all_reduce_seconds);
  const int64_t before = comm_.traffic().bytes_received;
  TESSERA_ASSIGN_OR_RETURN(Request sum, comm_.AllReduceSum(summand, {out, summand.size()}));
  TESSERA_RETURN_IF_ERROR(Wait(comm_, sum, "the sum of the heads' outputs"));
  stats_.all_reduce_bytes += comm_.traffic().bytes_received - before;
  return absl::OkStatus();
}

}  // namespace tessera
