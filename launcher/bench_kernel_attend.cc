// Attention of a whole sequence to itself on one rank, or its backward pass.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention_backward.h"
#include "launcher/bench_kernel.h"
#include "launcher/problem_flags.h"

namespace tessera::launcher {
namespace {

class AttendSubject final : public KernelSubject {
 public:
  AttendSubject(const KernelProblem& problem, Mask mask, std::span<const AttentionKernel* const> kernels)
      : problem_(problem), mask_(std::move(mask)), backward_(problem.operation == "backward"), kernels_(kernels) {}

  Status Fill() {
    const auto elements = [&](int heads, int width) { return static_cast<size_t>(problem_.tokens) * heads * width; };
    const size_t queries = elements(problem_.heads, problem_.qk_width);
    const size_t keys = elements(problem_.kv_heads, problem_.qk_width);
    const size_t values = elements(problem_.kv_heads, problem_.v_width);
    const size_t outputs = elements(problem_.heads, problem_.v_width);
    TESSERA_ASSIGN_OR_RETURN(query_, RandomElements(problem_.dtype, queries, 1));
    TESSERA_ASSIGN_OR_RETURN(key_, RandomElements(problem_.dtype, keys, 2));
    TESSERA_ASSIGN_OR_RETURN(value_, RandomElements(problem_.dtype, values, 3));
    output_.resize(outputs);
    lse_.resize(elements(problem_.heads, 1));
    if (!backward_) return absl::OkStatus();
    TESSERA_ASSIGN_OR_RETURN(output_gradient_, RandomElements(problem_.dtype, outputs, 4));
    rounded_output_.resize(outputs * SizeInBytes(problem_.dtype));
    delta_.resize(lse_.size());
    query_gradient_.resize(queries);
    key_gradient_.resize(keys);
    value_gradient_.resize(values);
    return absl::OkStatus();
  }

  std::string operation() const override { return problem_.operation; }
  std::string problem() const override { return problem_.ToString(); }
  DType dtype() const override { return problem_.dtype; }
  // Two products forward; S and P again and four of gradients backward, of which dS K and dS^T Q are as wide as
  // queries.
  double flops() const override {
    const double widths = backward_ ? 3.0 * problem_.qk_width + 2.0 * problem_.v_width
                                    : static_cast<double>(problem_.qk_width + problem_.v_width);
    return 2.0 * mask_.Area() * problem_.heads * widths;
  }
  double bytes() const override {
    return static_cast<double>(query_.bytes() + key_.bytes() + value_.bytes() + output_gradient_.bytes());
  }
  double tolerance() const override {
    if (problem_.dtype == DType::kFloat32) return 1e-5;
    return backward_ ? 8e-3 : 4e-3;  // P, and backward dS too, are rounded to bf16 once
  }

  std::vector<std::string> implementations() const override {
    std::vector<std::string> names;
    for (const AttentionKernel* kernel : kernels_) names.emplace_back(kernel->name());
    return names;
  }
  std::string WhyNot(size_t implementation) const override {
    return kernels_[implementation]->WhyNot({problem_.dtype, problem_.qk_width, problem_.v_width});
  }

  // The backward pass needs a forward result once.
  Status Prepare(size_t implementation, int threads) override {
    if (backward_ && saved_tokens_ != problem_.tokens) {
      TESSERA_RETURN_IF_ERROR(Save(*kernels_[implementation], problem_.tokens, threads));
    }
    Clear();
    return absl::OkStatus();
  }
  Status Run(size_t implementation, int threads) override {
    const AttentionKernel& kernel = *kernels_[implementation];
    return backward_ ? Backward(kernel, problem_.tokens, threads) : Forward(kernel, problem_.tokens, threads);
  }

  StatusOr<double> Error(size_t implementation, int threads) override {
    const int64_t tokens = std::min<int64_t>(problem_.tokens, 512);
    const AttentionKernel& reference = *kernels_.back();
    const AttentionKernel& kernel = *kernels_[implementation];
    if (!backward_) {
      Clear();
      TESSERA_RETURN_IF_ERROR(Forward(reference, tokens, threads));
      const std::vector<float> exact = output_;
      Clear();
      TESSERA_RETURN_IF_ERROR(Forward(kernel, tokens, threads));
      return RelativeDifference(output_, exact);
    }
    TESSERA_RETURN_IF_ERROR(Save(reference, tokens, threads));
    Clear();
    TESSERA_RETURN_IF_ERROR(Backward(reference, tokens, threads));
    const std::vector<float> exact[] = {query_gradient_, key_gradient_, value_gradient_};
    Clear();
    TESSERA_RETURN_IF_ERROR(Backward(kernel, tokens, threads));
    return std::max({RelativeDifference(query_gradient_, exact[0]), RelativeDifference(key_gradient_, exact[1]),
                     RelativeDifference(value_gradient_, exact[2])});
  }

 private:
  template <class Args>
  void FillCommon(Args& args, int64_t tokens, int threads) const {
    args.query = ConstTensorView::Dense(query_.data(), problem_.dtype, tokens, problem_.heads, problem_.qk_width);
    args.key = ConstTensorView::Dense(key_.data(), problem_.dtype, tokens, problem_.kv_heads, problem_.qk_width);
    args.value = ConstTensorView::Dense(value_.data(), problem_.dtype, tokens, problem_.kv_heads, problem_.v_width);
    args.bands = mask_.bands();
    args.group = problem_.heads / problem_.kv_heads;
    args.score.scale = 1.0f / std::sqrt(static_cast<float>(problem_.qk_width));
    args.threads = threads;
  }

  // What a pass adds to starts as nothing.
  void Clear() {
    if (backward_) {
      for (std::vector<float>* gradient : {&query_gradient_, &key_gradient_, &value_gradient_}) {
        std::fill(gradient->begin(), gradient->end(), 0.0f);
      }
    } else {
      ClearPartials();
    }
  }
  void ClearPartials() {
    std::fill(output_.begin(), output_.end(), 0.0f);
    std::fill(lse_.begin(), lse_.end(), -std::numeric_limits<float>::infinity());
  }

  // Of the first `tokens` tokens; the mask is cut with the tile.
  Status Forward(const AttentionKernel& kernel, int64_t tokens, int threads) {
    const Tile tile{0, {0, tokens, 1}, 0, {0, tokens, 1}};
    AttendArgs args;
    FillCommon(args, tokens, threads);
    args.output = TensorView::Dense(output_.data(), DType::kFloat32, tokens, problem_.heads, problem_.v_width);
    args.lse = TensorView::Dense(lse_.data(), DType::kFloat32, tokens, problem_.heads, 1);
    args.tiles = {&tile, 1};
    return kernel.Attend(args);
  }

  // What a backward pass over the first `tokens` tokens needs of the forward one.
  Status Save(const AttentionKernel& kernel, int64_t tokens, int threads) {
    ClearPartials();
    TESSERA_RETURN_IF_ERROR(Forward(kernel, tokens, threads));
    const auto partial = TensorView::Dense(output_.data(), DType::kFloat32, tokens, problem_.heads, problem_.v_width);
    const auto lse = TensorView::Dense(lse_.data(), DType::kFloat32, tokens, problem_.heads, 1);
    const auto output =
        TensorView::Dense(rounded_output_.data(), problem_.dtype, tokens, problem_.heads, problem_.v_width);
    std::vector<float> final_lse(lse_.size());
    FinishPartials(partial, lse, {}, output,
                   TensorView::Dense(final_lse.data(), DType::kFloat32, tokens, problem_.heads, 1), threads);
    lse_ = std::move(final_lse);
    ComputeDelta(
        output,
        ConstTensorView::Dense(output_gradient_.data(), problem_.dtype, tokens, problem_.heads, problem_.v_width),
        TensorView::Dense(delta_.data(), DType::kFloat32, tokens, problem_.heads, 1), threads);
    saved_tokens_ = tokens;
    return absl::OkStatus();
  }

  Status Backward(const AttentionKernel& kernel, int64_t tokens, int threads) {
    const Tile tile{0, {0, tokens, 1}, 0, {0, tokens, 1}};
    AttendBackwardArgs args;
    FillCommon(args, tokens, threads);
    const DType fp32 = DType::kFloat32;
    args.output_gradient =
        ConstTensorView::Dense(output_gradient_.data(), problem_.dtype, tokens, problem_.heads, problem_.v_width);
    args.lse = ConstTensorView::Dense(lse_.data(), fp32, tokens, problem_.heads, 1);
    args.delta = ConstTensorView::Dense(delta_.data(), fp32, tokens, problem_.heads, 1);
    args.query_gradient = TensorView::Dense(query_gradient_.data(), fp32, tokens, problem_.heads, problem_.qk_width);
    args.key_gradient = TensorView::Dense(key_gradient_.data(), fp32, tokens, problem_.kv_heads, problem_.qk_width);
    args.value_gradient = TensorView::Dense(value_gradient_.data(), fp32, tokens, problem_.kv_heads, problem_.v_width);
    args.tiles = {&tile, 1};
    return kernel.AttendBackward(args);
  }

  const KernelProblem problem_;
  const Mask mask_;
  const bool backward_;
  const std::span<const AttentionKernel* const> kernels_;
  HostBuffer query_, key_, value_, output_gradient_;
  std::vector<std::byte> rounded_output_;
  std::vector<float> output_, lse_, delta_, query_gradient_, key_gradient_, value_gradient_;
  int64_t saved_tokens_ = 0;  // that lse_ and delta_ belong to
};

}  // namespace

StatusOr<std::unique_ptr<KernelSubject>> MakeAttendSubject(const KernelProblem& problem,
                                                           std::span<const AttentionKernel* const> kernels) {
  TESSERA_ASSIGN_OR_RETURN(Mask mask, ParseMask(problem.mask, problem.tokens, problem.tokens));
  auto subject = std::make_unique<AttendSubject>(problem, std::move(mask), kernels);
  TESSERA_RETURN_IF_ERROR(subject->Fill());
  return std::unique_ptr<KernelSubject>(std::move(subject));
}

}  // namespace tessera::launcher
