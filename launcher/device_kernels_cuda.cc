#include <algorithm>
#include <functional>
#include <optional>
#include <vector>

#include "kernels/attention_backward.h"
#include "kernels/cuda/attend.h"
#include "kernels/cuda/backward.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/linear.h"
#include "kernels/decode_check.h"
#include "launcher/device_kernels.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/stream.h"

namespace tessera::launcher {
namespace {

// The GPU, a stream of it, and the time of what was launched last.
class Gpu {
 public:
  static StatusOr<std::unique_ptr<Gpu>> Open() {
    TESSERA_ASSIGN_OR_RETURN(CudaDevice device, CudaDevice::Open(0));
    auto gpu = std::unique_ptr<Gpu>(new Gpu(std::move(device)));
    TESSERA_ASSIGN_OR_RETURN(gpu->stream_, CudaStream::Create(gpu->device_));
    TESSERA_ASSIGN_OR_RETURN(gpu->begin_, CudaEvent::Create(gpu->device_, /*timing=*/true));
    TESSERA_ASSIGN_OR_RETURN(gpu->end_, CudaEvent::Create(gpu->device_, /*timing=*/true));
    return gpu;
  }
  const CudaDevice& device() const { return device_; }
  CUstream_st* stream() const { return stream_.handle(); }
  double seconds() const { return seconds_; }
  int capability() const { return 10 * device_.capability().major + device_.capability().minor; }

  StatusOr<DeviceBuffer> Allocate(int64_t bytes, const char* what) const {
    return DeviceBuffer::Allocate(device_, bytes, what, stream());
  }
  StatusOr<DeviceBuffer> Copy(const void* from, int64_t bytes, const char* what) const {
    TESSERA_ASSIGN_OR_RETURN(DeviceBuffer copy, Allocate(bytes, what));
    if (bytes > 0) TESSERA_RETURN_IF_ERROR(CopyAsync(copy.data(), from, bytes, stream()));
    return copy;
  }
  Status Time(const std::function<Status()>& launch) {
    TESSERA_RETURN_IF_ERROR(begin_.Record(stream()));
    TESSERA_RETURN_IF_ERROR(launch());
    TESSERA_RETURN_IF_ERROR(end_.Record(stream()));
    TESSERA_RETURN_IF_ERROR(end_.Synchronize("a kernel that is measured"));
    TESSERA_ASSIGN_OR_RETURN(seconds_, CudaEvent::Seconds(begin_, end_));
    return absl::OkStatus();
  }
  Status Finish() const { return stream_.Synchronize("copying results from the GPU"); }

 private:
  explicit Gpu(CudaDevice device) : device_(std::move(device)) {}
  CudaDevice device_;
  CudaStream stream_;
  CudaEvent begin_, end_;
  double seconds_ = 0;
};

// A dense host tensor's copy on the GPU.
class Copied {
 public:
  static StatusOr<Copied> Of(const Gpu& gpu, const ConstTensorView& view, const char* what) {
    if (!view.IsDense()) return absl::InvalidArgumentError(absl::StrCat(what, ": the tensor must be dense"));
    Copied copied;
    copied.view_ = view;
    TESSERA_ASSIGN_OR_RETURN(copied.memory_, gpu.Copy(view.data, view.bytes(), what));
    return copied;
  }
  cuda::ConstDeviceView read() const { return {memory_.data(), view_.row_stride, view_.head_stride}; }
  cuda::DeviceView write() const { return {memory_.data(), view_.row_stride, view_.head_stride}; }
  Status CopyBack(const Gpu& gpu, const TensorView& to) const {
    return CopyAsync(to.data, memory_.data(), view_.bytes(), gpu.stream());
  }

 private:
  ConstTensorView view_;
  DeviceBuffer memory_;
};

class TimedAttention final : public AttentionKernel {
 public:
  TimedAttention(Gpu& gpu, const cuda::AttendKernel& forward) : gpu_(gpu), forward_(&forward) {}
  TimedAttention(Gpu& gpu, const cuda::BackwardKernel& backward) : gpu_(gpu), backward_(&backward) {}

  std::string_view name() const override { return backward_ == nullptr ? forward_->name() : backward_->name(); }
  std::string WhyNot(const AttentionTraits& traits) const override {
    const cuda::AttendTraits asked{traits.dtype, traits.qk_width, traits.v_width, gpu_.capability()};
    return backward_ == nullptr ? forward_->WhyNot(asked) : backward_->WhyNot(asked);
  }

  Status Attend(const AttendArgs& args) const override {
    const cuda::AttendShape shape = cuda::ShapeOf(args);
    const cuda::AttendKernel* kernel = forward_;
    if (kernel == nullptr) {  // what the backward pass needs may come from any
      TESSERA_ASSIGN_OR_RETURN(kernel,
                               cuda::FindAttendKernel({shape.dtype, shape.qk_width, shape.v_width, gpu_.capability()}));
    }
    TESSERA_ASSIGN_OR_RETURN(const cuda::AttendWork work, PlanAttend(*kernel, shape, args.tiles, args.bands));
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer lists, gpu_.Copy(work.bytes.data(), SizeOf(work.bytes), "the work"));
    TESSERA_ASSIGN_OR_RETURN(const Copied query, Copied::Of(gpu_, args.query, "query"));
    TESSERA_ASSIGN_OR_RETURN(const Copied key, Copied::Of(gpu_, args.key, "key"));
    TESSERA_ASSIGN_OR_RETURN(const Copied value, Copied::Of(gpu_, args.value, "value"));
    TESSERA_ASSIGN_OR_RETURN(const Copied output, Copied::Of(gpu_, args.output, "output"));
    TESSERA_ASSIGN_OR_RETURN(const Copied lse, Copied::Of(gpu_, args.lse, "lse"));
    const cuda::AttendPointers pointers{query.read(), key.read(), value.read(), output.write(),
                                        lse.write(),  nullptr,    lists.data()};
    TESSERA_RETURN_IF_ERROR(gpu_.Time([&] { return LaunchAttend(*kernel, shape, work, pointers, gpu_.stream()); }));
    TESSERA_RETURN_IF_ERROR(output.CopyBack(gpu_, args.output));
    TESSERA_RETURN_IF_ERROR(lse.CopyBack(gpu_, args.lse));
    return gpu_.Finish();
  }

  Status AttendBackward(const AttendBackwardArgs& args) const override {
    if (backward_ == nullptr) return absl::UnimplementedError(absl::StrCat(std::string(name()), " has no backward"));
    const cuda::AttendShape shape = cuda::ShapeOf(args);
    TESSERA_ASSIGN_OR_RETURN(const cuda::BackwardWork work, PlanBackward(*backward_, shape, args.tiles, args.bands));
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer lists, gpu_.Copy(work.bytes.data(), SizeOf(work.bytes), "the work"));
    TESSERA_ASSIGN_OR_RETURN(const Copied query, Copied::Of(gpu_, args.query, "query"));
    TESSERA_ASSIGN_OR_RETURN(const Copied key, Copied::Of(gpu_, args.key, "key"));
    TESSERA_ASSIGN_OR_RETURN(const Copied value, Copied::Of(gpu_, args.value, "value"));
    TESSERA_ASSIGN_OR_RETURN(const Copied output_gradient, Copied::Of(gpu_, args.output_gradient, "output gradient"));
    TESSERA_ASSIGN_OR_RETURN(const Copied lse, Copied::Of(gpu_, args.lse, "lse"));
    TESSERA_ASSIGN_OR_RETURN(const Copied delta, Copied::Of(gpu_, args.delta, "delta"));
    TESSERA_ASSIGN_OR_RETURN(const Copied query_gradient, Copied::Of(gpu_, args.query_gradient, "query gradient"));
    TESSERA_ASSIGN_OR_RETURN(const Copied key_gradient, Copied::Of(gpu_, args.key_gradient, "key gradient"));
    TESSERA_ASSIGN_OR_RETURN(const Copied value_gradient, Copied::Of(gpu_, args.value_gradient, "value gradient"));
    const cuda::BackwardPointers pointers{query.read(),
                                          key.read(),
                                          value.read(),
                                          output_gradient.read(),
                                          lse.read(),
                                          delta.read(),
                                          query_gradient.write(),
                                          key_gradient.write(),
                                          value_gradient.write(),
                                          nullptr,
                                          lists.data()};
    TESSERA_RETURN_IF_ERROR(
        gpu_.Time([&] { return LaunchBackward(*backward_, shape, work, pointers, gpu_.stream()); }));
    TESSERA_RETURN_IF_ERROR(query_gradient.CopyBack(gpu_, args.query_gradient));
    TESSERA_RETURN_IF_ERROR(key_gradient.CopyBack(gpu_, args.key_gradient));
    TESSERA_RETURN_IF_ERROR(value_gradient.CopyBack(gpu_, args.value_gradient));
    return gpu_.Finish();
  }

 private:
  static int64_t SizeOf(const std::vector<std::byte>& bytes) { return static_cast<int64_t>(bytes.size()); }

  Gpu& gpu_;
  const cuda::AttendKernel* forward_ = nullptr;
  const cuda::BackwardKernel* backward_ = nullptr;
};

class TimedDecode final : public DecodeKernel {
 public:
  TimedDecode(Gpu& gpu, const cuda::DecodeDeviceKernel& kernel) : gpu_(gpu), kernel_(kernel) {}
  std::string_view name() const override { return kernel_.name(); }
  std::string WhyNot(const DecodeTraits& traits) const override {
    return kernel_.WhyNot({traits.dtype, traits.qk_width, traits.v_width, traits.value_in_key, gpu_.capability()});
  }

  // Of one sequence whose pages are all of the pool: what the benchmark has.
  Status Decode(const DecodeArgs& args) const override {
    TESSERA_RETURN_IF_ERROR(CheckDecodeArgs(args));
    if (args.sequences.size() != 1) {
      return absl::InvalidArgumentError(absl::StrCat("sequences: ", args.sequences.size(), "; one is measured"));
    }
    const DecodeSequence& sequence = args.sequences[0];
    const CacheLayer& cache = args.cache;
    cuda::DecodeShape shape;
    shape.dtype = cache.dtype;
    shape.qk_width = cache.qk_width;
    shape.v_width = cache.v_width;
    shape.value_in_key = TraitsOf(args).value_in_key;
    shape.heads = args.query.heads;
    shape.kv_heads = cache.kv_heads;
    shape.group = args.group;
    shape.scale = args.scale;
    cuda::DecodeLimits limits;
    limits.sequences = 1;
    limits.rows_per_sequence = static_cast<int>(sequence.visible.size());
    limits.query_rows = args.query.rows;
    limits.cached_rows = sequence.visible.back().end;
    limits.multiprocessors = gpu_.device().multiprocessors();
    TESSERA_ASSIGN_OR_RETURN(const cuda::DecodeWork work, PlanDecode(kernel_, shape, limits));
    const cuda::DecodeRows rows{0, limits.rows_per_sequence, 0, 0};
    std::vector<cuda::VisibleRows> visible;
    for (const Range& range : sequence.visible) visible.push_back({range.begin, range.end});
    const auto pages = static_cast<int64_t>(sequence.pages.size());
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer device_rows, gpu_.Copy(&rows, sizeof(rows), "the sequence"));
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer device_pages,
                             gpu_.Copy(sequence.pages.data(), pages * int64_t{sizeof(int32_t)}, "the page numbers"));
    TESSERA_ASSIGN_OR_RETURN(
        const DeviceBuffer device_visible,
        gpu_.Copy(visible.data(), static_cast<int64_t>(visible.size() * sizeof(visible[0])), "the visible ranges"));
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer workspace, gpu_.Allocate(work.workspace_bytes, "the splits"));
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer pool, gpu_.Copy(cache.key, pages * cache.page_stride, "the cache"));
    TESSERA_ASSIGN_OR_RETURN(const Copied query, Copied::Of(gpu_, args.query, "query"));
    TESSERA_ASSIGN_OR_RETURN(const Copied output, Copied::Of(gpu_, args.output, "output"));
    TESSERA_ASSIGN_OR_RETURN(const Copied lse, Copied::Of(gpu_, args.lse, "lse"));
    cuda::DecodePointers pointers;
    pointers.query = query.read();
    pointers.output = output.write();
    pointers.lse = lse.write();
    pointers.cache = cache;
    pointers.cache.key = pool.data();
    pointers.cache.value = pool.data() + (cache.value - cache.key);
    pointers.sequences = reinterpret_cast<const cuda::DecodeRows*>(device_rows.data());
    pointers.pages = reinterpret_cast<const int32_t*>(device_pages.data());
    pointers.visible = reinterpret_cast<const cuda::VisibleRows*>(device_visible.data());
    pointers.workspace = workspace.data();
    TESSERA_RETURN_IF_ERROR(gpu_.Time([&] { return LaunchDecode(kernel_, shape, work, pointers, gpu_.stream()); }));
    TESSERA_RETURN_IF_ERROR(output.CopyBack(gpu_, args.output));
    TESSERA_RETURN_IF_ERROR(lse.CopyBack(gpu_, args.lse));
    return gpu_.Finish();
  }

 private:
  Gpu& gpu_;
  const cuda::DecodeDeviceKernel& kernel_;
};

// Owned implementations and what callers see of them.
template <typename Kernel>
struct List {
  std::vector<std::unique_ptr<const Kernel>> owned;
  std::vector<const Kernel*> all;

  void Add(std::unique_ptr<const Kernel> kernel) {
    all.push_back(kernel.get());
    owned.push_back(std::move(kernel));
  }
};

class CudaKernels final : public DeviceKernels {
 public:
  explicit CudaKernels(std::unique_ptr<Gpu> gpu) : gpu_(std::move(gpu)) {
    for (const auto* kernel : cuda::AttendKernels()) forward_.Add(std::make_unique<TimedAttention>(*gpu_, *kernel));
    for (const auto* kernel : cuda::BackwardKernels()) backward_.Add(std::make_unique<TimedAttention>(*gpu_, *kernel));
    for (const auto* kernel : cuda::DecodeDeviceKernels()) decode_.Add(std::make_unique<TimedDecode>(*gpu_, *kernel));
    forward_.all.push_back(AttentionKernels().back());
    backward_.all.push_back(AttentionKernels().back());
    decode_.all.push_back(DecodeKernels().back());
  }
  std::string device_name() const override { return gpu_->device().ToString(); }
  std::span<const AttentionKernel* const> forward() const override { return forward_.all; }
  std::span<const AttentionKernel* const> backward() const override { return backward_.all; }
  std::span<const DecodeKernel* const> decode() const override { return decode_.all; }
  double seconds() const override { return gpu_->seconds(); }

  StatusOr<MachineLimits> Limits(int matrix_width, int64_t buffer_bytes) override {
    MachineLimits limits;
    const double width = matrix_width;
    TESSERA_ASSIGN_OR_RETURN(const double product, Fastest([&] { return Product(matrix_width); }));
    limits.bf16_flops = 2 * width * width * width / product;
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer from, gpu_->Allocate(buffer_bytes, "memory to copy"));
    TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer to, gpu_->Allocate(buffer_bytes, "memory to copy to"));
    TESSERA_RETURN_IF_ERROR(FillAsync(from.data(), 1, buffer_bytes, gpu_->stream()));
    TESSERA_ASSIGN_OR_RETURN(
        const double copy, Fastest([&] {
          return gpu_->Time([&] { return CopyAsync(to.data(), from.data(), buffer_bytes, gpu_->stream()); });
        }));
    limits.read_bytes = 2.0 * static_cast<double>(buffer_bytes) / copy;
    return limits;
  }

 private:
  StatusOr<double> Fastest(const std::function<Status()>& run) const {
    constexpr int kRuns = 6;  // the first of them warms up
    double best = 0;
    for (int i = 0; i < kRuns; ++i) {
      TESSERA_RETURN_IF_ERROR(run());
      best = i == 0 ? gpu_->seconds() : std::min(best, gpu_->seconds());
    }
    return best;
  }

  Status Product(int width) {
    if (product_width_ != width) TESSERA_RETURN_IF_ERROR(PrepareProduct(width));
    const cuda::LinearMap map{operands_.data(), DType::kBFloat16, 1, width, width};
    auto x = ConstTensorView::Dense(operands_.data(), DType::kBFloat16, width, 1, width);
    auto y = TensorView::Dense(result_.data(), DType::kFloat32, width, 1, width);
    x.space = y.space = MemorySpace::kDevice;
    return gpu_->Time([&] { return cublas_->Apply(map, x, 1.0f, y, gpu_->stream()); });
  }
  // Numbers near one: zeros take less power, and so more clock cycles a second, than data.
  Status PrepareProduct(int width) {
    const int64_t elements = int64_t{width} * width;
    const int64_t workspace = cuda::Cublas::WorkspaceBytes(gpu_->device().capability().major);
    TESSERA_ASSIGN_OR_RETURN(workspace_, gpu_->Allocate(workspace, "cuBLAS's workspace"));
    TESSERA_ASSIGN_OR_RETURN(result_, gpu_->Allocate(elements * 4, "the product's result"));
    std::vector<uint16_t> values(elements);
    uint32_t state = 1;
    for (uint16_t& value : values) {
      state = state * 1664525u + 1013904223u;
      value = BFloat16FromFloat(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f);
    }
    TESSERA_ASSIGN_OR_RETURN(operands_, gpu_->Copy(values.data(), elements * 2, "the product's operands"));
    TESSERA_RETURN_IF_ERROR(gpu_->Finish());
    TESSERA_ASSIGN_OR_RETURN(cublas_, cuda::Cublas::Create(workspace_.data(), workspace));
    product_width_ = width;
    return absl::OkStatus();
  }

  std::unique_ptr<Gpu> gpu_;
  List<AttentionKernel> forward_, backward_;
  List<DecodeKernel> decode_;
  DeviceBuffer workspace_, operands_, result_;
  std::optional<cuda::Cublas> cublas_;
  int product_width_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<DeviceKernels>> OpenDeviceKernels() {
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Gpu> gpu, Gpu::Open());
  return std::unique_ptr<DeviceKernels>(std::make_unique<CudaKernels>(std::move(gpu)));
}

}  // namespace tessera::launcher
