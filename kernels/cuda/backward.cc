#include "kernels/cuda/backward.h"

#include <array>
#include <limits>

#include "kernels/cuda/error.h"
#include "kernels/cuda/shape.h"
#include "kernels/cuda/sm80/backward_config.h"
#include "kernels/cuda/sm90/backward_config.h"
#include "kernels/find_kernel.h"

namespace tessera::cuda {
namespace {

constexpr DType kbf16 = DType::kBFloat16;
constexpr DType kfp16 = DType::kFloat16;

#define TESSERA_CUDA_BACKWARD(family, dtype, element, qk, v) \
  {k##dtype,                                                 \
   qk,                                                       \
   v,                                                        \
   family::BackwardConfig<qk, v>::kOwnRows,                  \
   family::BackwardConfig<qk, v>::kOtherRows,                \
   &family::LaunchBackward<element, qk, v>},
#define TESSERA_CUDA_INSTANCE(...) TESSERA_CUDA_BACKWARD(sm80, __VA_ARGS__)
constexpr BackwardInstance kSm80[] = {
#include "kernels/cuda/instances.inc"
};
#undef TESSERA_CUDA_INSTANCE
#define TESSERA_CUDA_HOPPER_INSTANCE(...) TESSERA_CUDA_BACKWARD(sm90, __VA_ARGS__)
constexpr BackwardInstance kSm90[] = {
#include "kernels/cuda/instances.inc"
};
#undef TESSERA_CUDA_HOPPER_INSTANCE
#undef TESSERA_CUDA_BACKWARD

// wgmma exists on 9.0 alone.
const BackwardKernel kSm90Kernel("cuda-sm90a", kSm90, 90, 90);
const BackwardKernel kSm80Kernel("cuda-sm80", kSm80, 80, std::numeric_limits<int>::max());

}  // namespace

template class InstanceKernel<BackwardInstance>;

std::span<const BackwardKernel* const> BackwardKernels() {
  static constexpr std::array<const BackwardKernel*, 2> kKernels = {&kSm90Kernel, &kSm80Kernel};
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
  work.rows = RowsOf(tiles);
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
  params.query_rows = work.rows.queries;
  params.key_rows = work.rows.keys;
  params.vector_qk =
      HoldsWholeVectors(pointers.query, shape.qk_width) && HoldsWholeVectors(pointers.key, shape.qk_width);
  params.vector_v =
      HoldsWholeVectors(pointers.value, shape.v_width) && HoldsWholeVectors(pointers.output_gradient, shape.v_width);
  return CheckLaunch(work.instance->launch(params, stream), kernel.name());
}

}  // namespace tessera::cuda
