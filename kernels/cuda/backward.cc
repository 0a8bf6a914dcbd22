#include "kernels/cuda/backward.h"

#include <array>
#include <limits>

#include "kernels/cuda/error.h"
#include "kernels/cuda/shape.h"
#include "kernels/cuda/sm80/backward_config.h"
#include "kernels/find_kernel.h"

namespace tessera::cuda {
namespace {

constexpr DType kbf16 = DType::kBFloat16;
constexpr DType kfp16 = DType::kFloat16;

#define TESSERA_CUDA_INSTANCE(dtype, element, qk, v) \
  {k##dtype,                                         \
   qk,                                               \
   v,                                                \
   sm80::BackwardConfig<qk, v>::kOwnRows,            \
   sm80::BackwardConfig<qk, v>::kOtherRows,          \
   &sm80::LaunchBackward<element, qk, v>},
constexpr BackwardInstance kSm80[] = {
#include "kernels/cuda/instances.inc"
};
#undef TESSERA_CUDA_INSTANCE

const BackwardKernel kSm80Kernel("cuda-sm80", kSm80, 80, std::numeric_limits<int>::max());

}  // namespace

std::string BackwardKernel::WhyNot(const AttendTraits& traits) const {
  return WhyNotInstance(instances_, traits, first_capability_, last_capability_);
}

const BackwardInstance* BackwardKernel::Find(DType dtype, int qk_width, int v_width) const {
  return FindInstance(instances_, dtype, qk_width, v_width);
}

std::span<const BackwardKernel* const> BackwardKernels() {
  static constexpr std::array<const BackwardKernel*, 1> kKernels = {&kSm80Kernel};
  return kKernels;
}

StatusOr<const BackwardKernel*> FindBackwardKernel(const AttendTraits& traits, std::string_view name) {
  return FindKernel(BackwardKernels(), traits, name, "CUDA backward attention", "head widths");
}

StatusOr<BackwardWork> PlanBackward(const BackwardKernel& kernel, const AttendShape& shape, std::span<const Tile> tiles,
                                    std::span<const Band> bands) {
  TESSERA_RETURN_IF_ERROR(CheckShape(shape));
  BackwardWork work;
  work.instance = kernel.Find(shape.dtype, shape.qk_width, shape.v_width);
  if (work.instance == nullptr) return NoInstance(kernel.name(), shape);
  const int own = work.instance->own_rows, other = work.instance->other_rows;
  TESSERA_ASSIGN_OR_RETURN(const WorkLists by_queries, PlanWork(tiles, bands, Side::kQueries, own, other));
  TESSERA_ASSIGN_OR_RETURN(const WorkLists by_keys, PlanWork(tiles, bands, Side::kKeys, own, other));
  work.by_queries = AppendWork(by_queries, &work.bytes);
  work.by_keys = AppendWork(by_keys, &work.bytes);
  return work;
}

Status LaunchBackward(const BackwardKernel& kernel, const AttendShape& shape, const BackwardWork& work,
                      const BackwardPointers& pointers, CUstream_st* stream) {
  if (work.instance == nullptr || work.instance != kernel.Find(shape.dtype, shape.qk_width, shape.v_width)) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(kernel.name()), ": the work was not planned by this kernel for this shape"));
  }
  if (work.by_queries.block_count == 0) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(CheckSlopes(shape, pointers.alibi_slopes));
  BackwardParams params;
  params.query = MatrixOf<uint16_t>(pointers.query);
  params.key = MatrixOf<uint16_t>(pointers.key);
  params.value = MatrixOf<uint16_t>(pointers.value);
  params.output_gradient = MatrixOf<uint16_t>(pointers.output_gradient);
  params.lse = MatrixOf<float>(pointers.lse);
  params.delta = MatrixOf<float>(pointers.delta);
  params.query_gradient = MatrixOf<float>(pointers.query_gradient);
  params.key_gradient = MatrixOf<float>(pointers.key_gradient);
  params.value_gradient = MatrixOf<float>(pointers.value_gradient);
  params.by_queries = WorkOn(pointers.work, work.by_queries);
  params.by_keys = WorkOn(pointers.work, work.by_keys);
  params.score = ScoreOf(shape, pointers.alibi_slopes);
  params.vector_qk =
      HoldsWholeVectors(pointers.query, shape.qk_width) && HoldsWholeVectors(pointers.key, shape.qk_width);
  params.vector_v =
      HoldsWholeVectors(pointers.value, shape.v_width) && HoldsWholeVectors(pointers.output_gradient, shape.v_width);
  return CheckLaunch(work.instance->launch(params, stream), kernel.name());
}

}  // namespace tessera::cuda
