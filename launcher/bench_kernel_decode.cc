// One decode step of one layer: a query row of one sequence, heads and widths as on one rank.
#include <algorithm>
#include <cmath>

#include "kernels/decode.h"
#include "launcher/bench_kernel.h"

namespace tessera::launcher {
namespace {

// A cache of random numbers whose pages lie in random order, each head's rows together in a page as the engine's caches
// have them, and one query row.
class DecodeSubject final : public KernelSubject {
 public:
  DecodeSubject(const KernelProblem& problem, std::span<const DecodeKernel* const> kernels)
      : problem_(problem), kernels_(kernels) {
    const auto element = static_cast<int64_t>(SizeInBytes(problem.dtype));
    key_bytes_ = problem.qk_width * element;
    value_bytes_ = problem.latent ? 0 : problem.v_width * element;
    const int64_t pages = Pages();
    pages_.resize(pages);
    for (int64_t i = 0; i < pages; ++i) pages_[i] = static_cast<int32_t>(i);
    uint64_t state = 1;
    for (int64_t i = pages; i > 1; --i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      std::swap(pages_[i - 1], pages_[(state >> 33) % i]);
    }
    output_.resize(static_cast<size_t>(problem.heads) * problem.v_width);
    lse_.resize(problem.heads);
  }

  Status Fill() {
    const int64_t page_elements = problem_.page_tokens * problem_.kv_heads * (key_bytes_ + value_bytes_) /
                                  static_cast<int64_t>(SizeInBytes(problem_.dtype));
    TESSERA_ASSIGN_OR_RETURN(cache_, RandomElements(problem_.dtype, static_cast<size_t>(Pages() * page_elements), 1));
    TESSERA_ASSIGN_OR_RETURN(
        query_, RandomElements(problem_.dtype, static_cast<size_t>(problem_.heads) * problem_.qk_width, 2));
    return absl::OkStatus();
  }

  std::string operation() const override { return problem_.operation; }
  std::string problem() const override { return problem_.ToString(); }
  DType dtype() const override { return problem_.dtype; }
  double flops() const override {
    return 2.0 * problem_.heads * (problem_.qk_width + problem_.v_width) * static_cast<double>(problem_.tokens);
  }
  double bytes() const override {
    return static_cast<double>(problem_.tokens * problem_.kv_heads * (key_bytes_ + value_bytes_));
  }
  // Half types round every weight once; fp32 rounds sums of thousands.
  double tolerance() const override { return problem_.dtype == DType::kFloat32 ? 1e-5 : 4e-3; }

  std::vector<std::string> implementations() const override {
    std::vector<std::string> names;
    for (const DecodeKernel* kernel : kernels_) names.emplace_back(kernel->name());
    return names;
  }
  std::string WhyNot(size_t implementation) const override {
    return kernels_[implementation]->WhyNot({problem_.dtype, problem_.qk_width, problem_.v_width, problem_.latent});
  }
  Status Run(size_t implementation, int threads) override {
    return Decode(*kernels_[implementation], problem_.tokens, threads);
  }
  StatusOr<double> Error(size_t implementation, int threads) override {
    const int64_t keys = std::min<int64_t>(problem_.tokens, 512);
    TESSERA_RETURN_IF_ERROR(Decode(*kernels_.back(), keys, threads));
    const std::vector<float> exact = output_;
    TESSERA_RETURN_IF_ERROR(Decode(*kernels_[implementation], keys, threads));
    return RelativeDifference(output_, exact);
  }

 private:
  int64_t Pages() const { return (problem_.tokens + problem_.page_tokens - 1) / problem_.page_tokens; }

  // Over the first `keys` keys.
  Status Decode(const DecodeKernel& kernel, int64_t keys, int threads) {
    const Range visible[] = {{0, keys}};
    const DecodeSequence sequence{0, pages_, visible};
    DecodeArgs args;
    args.query = ConstTensorView::Dense(query_.data(), problem_.dtype, 1, problem_.heads, problem_.qk_width);
    args.output = TensorView::Dense(output_.data(), DType::kFloat32, 1, problem_.heads, problem_.v_width);
    args.lse = TensorView::Dense(lse_.data(), DType::kFloat32, 1, problem_.heads, 1);
    CacheLayer& layer = args.cache;
    layer.dtype = problem_.dtype;
    layer.kv_heads = problem_.kv_heads;
    layer.qk_width = problem_.qk_width;
    layer.v_width = problem_.v_width;
    layer.page_tokens = problem_.page_tokens;
    layer.key_row_stride = key_bytes_;
    layer.key_head_stride = problem_.page_tokens * layer.key_row_stride;
    layer.value_row_stride = problem_.latent ? key_bytes_ : value_bytes_;
    layer.value_head_stride = problem_.page_tokens * layer.value_row_stride;
    layer.page_stride = problem_.page_tokens * problem_.kv_heads * (key_bytes_ + value_bytes_);
    layer.key = cache_.data();
    layer.value = problem_.latent ? layer.key : layer.key + problem_.kv_heads * layer.key_head_stride;
    args.sequences = {&sequence, 1};
    args.group = problem_.heads / problem_.kv_heads;
    args.scale = 1.0f / std::sqrt(static_cast<float>(problem_.qk_width));
    args.threads = threads;
    return kernel.Decode(args);
  }

  const KernelProblem problem_;
  const std::span<const DecodeKernel* const> kernels_;
  int64_t key_bytes_, value_bytes_;
  HostBuffer cache_, query_;
  std::vector<int32_t> pages_;
  std::vector<float> output_, lse_;
};

}  // namespace

StatusOr<std::unique_ptr<KernelSubject>> MakeDecodeSubject(const KernelProblem& problem,
                                                           std::span<const DecodeKernel* const> kernels) {
  auto subject = std::make_unique<DecodeSubject>(problem, kernels);
  TESSERA_RETURN_IF_ERROR(subject->Fill());
  return std::unique_ptr<KernelSubject>(std::move(subject));
}

}  // namespace tessera::launcher
