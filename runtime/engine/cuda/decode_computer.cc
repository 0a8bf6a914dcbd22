#include "runtime/engine/cuda/decode_computer.h"

#include "runtime/engine/cuda/decode.h"
#include "runtime/engine/cuda/device_views.h"
#include "runtime/engine/decode_common.h"

namespace tessera {

StatusOr<CudaDecodeWork> CudaDecodeWork::Create(const DecodeSpec& spec, int rank, HeadRange heads,
                                                const CudaDecodeOptions& options, const DecodeStepLimits& limits,
                                                const CudaDevice& device, const CudaStream& own) {
  CudaDecodeWork result;
  const cuda::DecodeDeviceTraits traits{spec.dtype, spec.qk_width, spec.v_width, options.value_in_key,
                                        10 * device.capability().major + device.capability().minor};
  TESSERA_ASSIGN_OR_RETURN(result.kernel_, cuda::FindDecodeDeviceKernel(traits, options.kernel));
  if (heads.empty()) return result;
  const HeadRange kv_heads = KvHeadsOf(spec, rank);
  cuda::DecodeShape& shape = result.shape_;
  shape.dtype = spec.dtype;
  shape.qk_width = spec.qk_width;
  shape.v_width = spec.v_width;
  shape.value_in_key = options.value_in_key;
  shape.heads = heads.size();
  shape.kv_heads = kv_heads.size();
  shape.first_query_head = heads.begin;
  shape.first_kv_head = kv_heads.begin;
  shape.group = spec.heads / spec.kv_heads;
  shape.scale = options.scale;
  shape.soft_cap = options.soft_cap;
  const cuda::DecodeLimits most{limits.sequences, limits.rows_per_sequence, limits.rows, options.expected_rows,
                                device.multiprocessors()};
  TESSERA_ASSIGN_OR_RETURN(result.work_, cuda::PlanDecode(*result.kernel_, shape, most));
  TESSERA_ASSIGN_OR_RETURN(result.workspace_, DeviceBuffer::Allocate(device, result.work_.workspace_bytes,
                                                                     "the splits of decode attention", own.handle()));
  return result;
}

Status CudaDecodeComputer::Launch(StepId step, const SlotTable& slots, CUstream_st* stream) const {
  const StepBody& body = program_.steps[step].body;
  const auto* attend = std::get_if<AttendCacheStep>(&body);
  if (attend == nullptr) return LaunchCommonStep(body, slots, stream);
  cuda::DecodePointers pointers;
  pointers.query = Read(slots, attend->query);
  pointers.output = Write(slots, attend->partial_output);
  pointers.lse = Write(slots, attend->partial_lse);
  pointers.cache = cache_;
  pointers.sequences = step_.sequences();
  pointers.pages = step_.pages();
  pointers.visible = step_.visible();
  pointers.workspace = work_.workspace_.data();
  return cuda::LaunchDecode(*work_.kernel_, work_.shape_, work_.work_, pointers, stream);
}

}  // namespace tessera
