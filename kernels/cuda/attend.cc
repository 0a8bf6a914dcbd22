#include "kernels/cuda/attend.h"

#include <array>
#include <limits>

#include "kernels/cuda/error.h"
#include "kernels/cuda/shape.h"
#include "kernels/cuda/sm80/attend_config.h"
#include "kernels/cuda/sm90/attend_config.h"
#include "kernels/find_kernel.h"

namespace tessera::cuda {
namespace {

constexpr DType kbf16 = DType::kBFloat16;
constexpr DType kfp16 = DType::kFloat16;

#define TESSERA_CUDA_INSTANCE(dtype, element, qk, v) \
  {k##dtype,                                         \
   qk,                                               \
   v,                                                \
   sm80::AttendConfig<qk, v>::kRows,                 \
   sm80::AttendConfig<qk, v>::kKeys,                 \
   &sm80::LaunchAttend<element, qk, v>},
constexpr AttendInstance kSm80[] = {
#include "kernels/cuda/instances.inc"
};
#undef TESSERA_CUDA_INSTANCE
#define TESSERA_CUDA_HOPPER_INSTANCE(dtype, element, qk, v) \
  {k##dtype,                                                \
   qk,                                                      \
   v,                                                       \
   sm90::AttendConfig<qk, v>::kRows,                        \
   sm90::AttendConfig<qk, v>::kKeys,                        \
   &sm90::LaunchAttend<element, qk, v>},
constexpr AttendInstance kSm90[] = {
#include "kernels/cuda/instances.inc"
};
#undef TESSERA_CUDA_HOPPER_INSTANCE

// wgmma exists on 9.0 alone.
const AttendKernel kSm90Kernel("cuda-sm90a", kSm90, 90, 90);
// 8.0 also serves every later capability: through its machine code up to 8.9, through its PTX beyond.
const AttendKernel kSm80Kernel("cuda-sm80", kSm80, 80, std::numeric_limits<int>::max());

}  // namespace

template class InstanceKernel<AttendInstance>;

std::span<const AttendKernel* const> AttendKernels() {
  static constexpr std::array<const AttendKernel*, 2> kKernels = {&kSm90Kernel, &kSm80Kernel};
  return kKernels;
}

StatusOr<const AttendKernel*> FindAttendKernel(const AttendTraits& traits, std::string_view name) {
  return FindKernel(AttendKernels(), traits, name, "CUDA attention", "head widths");
}

StatusOr<AttendWork> PlanAttend(const AttendKernel& kernel, const AttendShape& shape, std::span<const Tile> tiles,
                                std::span<const Band> bands) {
  TESSERA_RETURN_IF_ERROR(CheckShape(shape));
  AttendWork work;
  work.instance = kernel.Find(shape.dtype, shape.qk_width, shape.v_width);
  if (work.instance == nullptr) return NoInstance(kernel.name(), shape);
  TESSERA_ASSIGN_OR_RETURN(const WorkLists lists,
                           PlanWork(tiles, bands, Side::kQueries, work.instance->block_rows, work.instance->run_rows));
  work.layout = AppendWork(lists, &work.bytes);
  work.rows = RowsOf(tiles);
  return work;
}

Status LaunchAttend(const AttendKernel& kernel, const AttendShape& shape, const AttendWork& work,
                    const AttendPointers& pointers, CUstream_st* stream) {
  if (work.instance == nullptr || work.instance != kernel.Find(shape.dtype, shape.qk_width, shape.v_width)) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(kernel.name()), ": the work was not planned by this kernel for this shape"));
  }
  if (work.layout.block_count == 0) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(CheckSlopes(shape, pointers.alibi_slopes));
  AttendParams params;
  params.query = MatrixOf<uint16_t>(pointers.query);
  params.key = MatrixOf<uint16_t>(pointers.key);
  params.value = MatrixOf<uint16_t>(pointers.value);
  params.output = MatrixOf<float>(pointers.output);
  params.lse = MatrixOf<float>(pointers.lse);
  params.work = WorkOn(pointers.work, work.layout);
  params.score = ScoreOf(shape, pointers.alibi_slopes);
  params.query_rows = work.rows.queries;
  params.key_rows = work.rows.keys;
  params.vector_qk =
      HoldsWholeVectors(pointers.query, shape.qk_width) && HoldsWholeVectors(pointers.key, shape.qk_width);
  params.vector_v = HoldsWholeVectors(pointers.value, shape.v_width);
  return CheckLaunch(work.instance->launch(params, stream), kernel.name());
}

}  // namespace tessera::cuda
