// One rank of a random decode step on its GPU.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cuda/row_ops.h"
#include "kernels/decode_check.h"
#include "runtime/engine/cuda/cache.h"
#include "runtime/engine/cuda/decode.h"
#include "tests/support/decode_local.h"
#include "tests/support/device_tensors.h"
#include "tests/support/gpu_world.h"

namespace tessera::testing {

// The options that serve a case. `expected_rows` decides about splits, whatever rows there are.
inline CudaDecodeOptions GpuDecodeOptions(const DecodeCase& problem, int64_t expected_rows) {
  CudaDecodeOptions options;
  options.scale = problem.options.scale;
  options.soft_cap = problem.options.soft_cap;
  options.value_in_key = problem.shape.latent;
  options.max_sequences = static_cast<int>(problem.sequences.size()) + 1;  // the last one stays empty
  options.max_rows_per_sequence = 3;
  for (const DecodeCase::Sequence& s : problem.sequences) {
    options.max_pages += (s.tokens + problem.page_tokens - 1) / problem.page_tokens;
  }
  options.page_tokens = problem.page_tokens;
  options.expected_rows = expected_rows;
  return options;
}

// A rank's part of a case in device memory: the pool with all its poison, the query, and outputs that start as NaN.
class GpuDecode {
 public:
  static StatusOr<GpuDecode> Create(Gpu& gpu, const DecodeCase& problem) {
    GpuDecode decode(gpu, LayOut(problem, gpu.control->rank()));
    TESSERA_RETURN_IF_ERROR(decode.Upload(problem));
    return decode;
  }

  // Gives the tensors on the device what `problem`, another step over the same cache, has.
  Status Redraw(const DecodeCase& problem) {
    ShowVisible(problem, gpu_->control->rank(), local_);
    LayOutQuery(problem, gpu_->control->rank(), local_);
    return Fill(problem);
  }
  Status Run(CudaDecodeAttention& attention, const CudaDecodeStep& step) const {
    return attention.Run(query_.view(), layer_, step, output_.view(), lse_.view(), gpu_->stream.handle());
  }
  // From here on the cache is a CudaPagedCache that kernels have filled, every sequence a fork in the middle.
  Status MoveToPagedCache(const DecodeCase& problem) {
    const int rank = gpu_->control->rank();
    CacheOptions options{problem.sharding.LocalShape(rank, problem.shape), 1, problem.page_tokens, 0};
    for (const auto& pages : local_.pages) options.pages += static_cast<int64_t>(pages.size()) + 1;
    TESSERA_ASSIGN_OR_RETURN(CudaPagedCache cache,
                             CudaPagedCache::Create(options, gpu_->device, gpu_->stream.handle()));
    std::vector<std::vector<int32_t>> moved_pages;
    for (size_t i = 0; i < problem.sequences.size(); ++i) {
      const int64_t rows = problem.sharding.LocalRows(rank, problem.sequences[i].tokens);
      const SequenceId parent = cache.Start();
      TESSERA_RETURN_IF_ERROR(AppendRows(cache, parent, i, {0, rows / 2}));
      TESSERA_ASSIGN_OR_RETURN(const SequenceId child, cache.Fork(parent, rows / 2));
      TESSERA_RETURN_IF_ERROR(AppendRows(cache, child, i, {rows / 2, rows}));
      TESSERA_RETURN_IF_ERROR(cache.Release(parent));
      const std::span<const int32_t> pages = cache.pages(child);
      moved_pages.emplace_back(pages.begin(), pages.end());
    }
    local_.pages = std::move(moved_pages);
    ShowVisible(problem, rank, local_);
    layer_ = cache.layer(0);
    cache_.emplace(std::move(cache));
    return absl::OkStatus();
  }
  // Waits for the stream.
  Status Fetch(DecodeResult& result) const {
    result.output.resize(output_.view().elements());
    result.lse.resize(lse_.view().elements());
    TESSERA_RETURN_IF_ERROR(output_.Fetch(Host(result.output, output_.view()), gpu_->stream));
    TESSERA_RETURN_IF_ERROR(lse_.Fetch(Host(result.lse, lse_.view()), gpu_->stream));
    return gpu_->stream.Synchronize("fetching what decode attention computed");
  }

  std::span<const DecodeSequence> sequences() const { return local_.sequences; }
  const CacheLayer& layer() const { return layer_; }
  const TensorView& query() const { return query_.view(); }
  const TensorView& output() const { return output_.view(); }
  const TensorView& lse() const { return lse_.view(); }

 private:
  GpuDecode(Gpu& gpu, LocalDecode local) : gpu_(&gpu), local_(std::move(local)) {}

  static TensorView Host(std::vector<float>& values, const TensorView& like) {
    return TensorView::Dense(values.data(), DType::kFloat32, like.rows, like.heads, like.width);
  }

  Status Upload(const DecodeCase& problem) {
    const auto bytes = static_cast<int64_t>(local_.pool.size());
    TESSERA_ASSIGN_OR_RETURN(pool_,
                             DeviceBuffer::Allocate(gpu_->device, bytes, "a test's cache", gpu_->stream.handle()));
    TESSERA_RETURN_IF_ERROR(CopyAsync(pool_.data(), local_.pool.data(), bytes, gpu_->stream.handle()));
    layer_ = local_.layer;
    layer_.key = pool_.data();
    layer_.value = pool_.data() + (local_.layer.value - local_.layer.key);
    const int rank = gpu_->control->rank();
    const DecodeSpec& spec = problem.spec;
    const int heads = spec.OutputHeads(rank).size();
    const auto make = [&](DType dtype, int of_heads, int width) {
      return DeviceTensor::Create(gpu_->device, gpu_->stream,
                                  ConstTensorView::Dense(nullptr, dtype, spec.rows, of_heads, width));
    };
    TESSERA_ASSIGN_OR_RETURN(query_, make(spec.dtype, spec.QueryHeads(rank).size(), spec.qk_width));
    TESSERA_ASSIGN_OR_RETURN(output_, make(DType::kFloat32, heads, spec.v_width));
    TESSERA_ASSIGN_OR_RETURN(lse_, make(DType::kFloat32, heads, 1));
    return Fill(problem);
  }

  // Adds rows of a sequence from the host's pool.
  Status AppendRows(CudaPagedCache& cache, SequenceId id, size_t sequence, Range rows) {
    const CacheGrowth growth{id, rows.size()};
    TESSERA_RETURN_IF_ERROR(cache.Append({&growth, 1}));
    std::vector<cuda::CacheSlot> slots;
    for (int64_t row = rows.begin; row < rows.end; ++row) slots.push_back(cache.SlotOf(id, row));
    const auto slot_bytes = static_cast<int64_t>(slots.size() * sizeof(cuda::CacheSlot));
    TESSERA_ASSIGN_OR_RETURN(
        const DeviceBuffer on_device,
        DeviceBuffer::Allocate(gpu_->device, slot_bytes, "a test's cache slots", gpu_->stream.handle()));
    TESSERA_RETURN_IF_ERROR(CopyAsync(on_device.data(), slots.data(), slot_bytes, gpu_->stream.handle()));
    for (const auto part : {cuda::CachePart::kKeys, cuda::CachePart::kValues}) {
      const bool keys = part == cuda::CachePart::kKeys;
      if (!keys && cache.options().shape.latent) continue;
      const CacheLayer& from = local_.layer;
      const int width = keys ? from.qk_width : from.v_width;
      const auto bytes = static_cast<int64_t>(width * SizeInBytes(from.dtype));
      std::vector<std::byte> dense;
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        for (int head = 0; head < from.kv_heads; ++head) {
          const std::byte* const cell =
              keys ? KeyAt(from, local_.pages[sequence], row, head) : ValueAt(from, local_.pages[sequence], row, head);
          dense.insert(dense.end(), cell, cell + bytes);
        }
      }
      const auto view = ConstTensorView::Dense(dense.data(), from.dtype, rows.size(), from.kv_heads, width);
      TESSERA_ASSIGN_OR_RETURN(const DeviceTensor tensor, DeviceTensor::Create(gpu_->device, gpu_->stream, view));
      TESSERA_RETURN_IF_ERROR(tensor.Fill(view, gpu_->stream));
      TESSERA_RETURN_IF_ERROR(cuda::AppendToCache(tensor.view(),
                                                  reinterpret_cast<const cuda::CacheSlot*>(on_device.data()),
                                                  cache.layer(0), part, gpu_->stream.handle()));
      TESSERA_RETURN_IF_ERROR(gpu_->stream.Synchronize("appending rows"));
    }
    return absl::OkStatus();
  }

  Status Fill(const DecodeCase& problem) const {
    TESSERA_RETURN_IF_ERROR(query_.Fill(ConstTensorView::Dense(local_.query.data(), problem.spec.dtype, problem.rows(),
                                                               query_.view().heads, query_.view().width),
                                        gpu_->stream));
    for (const TensorView& view : {output_.view(), lse_.view()}) {
      TESSERA_RETURN_IF_ERROR(FillAsync(view.data, 0xff, view.bytes(), gpu_->stream.handle()));  // NaN
    }
    return absl::OkStatus();
  }

  Gpu* gpu_;
  LocalDecode local_;
  DeviceBuffer pool_;
  CacheLayer layer_;
  DeviceTensor query_, output_, lse_;
  std::optional<CudaPagedCache> cache_;
};

}  // namespace tessera::testing
