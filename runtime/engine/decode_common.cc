#include "runtime/engine/decode_common.h"

#include <bit>
#include <string>

#include "collectives/agreement.h"
#include "runtime/engine/tensor_check.h"

namespace tessera {
namespace {

Status CheckDense(std::string_view name, const ConstTensorView& view) {
  if (view.IsDense()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: strides are %d and %d; the tensor must be dense",
                                                    std::string(name), view.row_stride, view.head_stride));
}

}  // namespace

Status AgreeOnDecode(Communicator& comm, const DecodeSpec& spec, float scale, float soft_cap) {
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(comm, HashWithoutRows(spec), "decode plan"));
  const uint64_t score = (uint64_t{std::bit_cast<uint32_t>(scale)} << 32) | std::bit_cast<uint32_t>(soft_cap);
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(comm, score, "decode scale and soft cap"));
  // From here on every rank sees the same spec, so these checks give the same answer everywhere.
  DecodeSpec without_rows = spec;
  without_rows.rows = 0;
  TESSERA_RETURN_IF_ERROR(Validate(without_rows));
  if (comm.size() == spec.ranks) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("the decode plan is for %d ranks and the communicator has %d", spec.ranks, comm.size()));
}

const AttendCacheStep* AttendOf(const RankProgram& program) {
  for (const Step& step : program.steps) {
    if (const auto* attend = std::get_if<AttendCacheStep>(&step.body)) return attend;
  }
  return nullptr;
}

HeadRange KvHeadsOf(const DecodeSpec& spec, int rank) {
  return ShardingOf(spec, 1).KvHeads(rank, spec.kv_heads);
}

Status CheckDecodeTensors(const RankProgram& program, DType dtype, const ConstTensorView& query,
                          const ConstTensorView& output, const ConstTensorView& lse, MemorySpace space) {
  const std::vector<Slot>& slots = program.slots;
  TESSERA_RETURN_IF_ERROR(CheckTensor("query", query, slots[kDecodeQuerySlot], dtype, space));
  TESSERA_RETURN_IF_ERROR(CheckTensor("output", output, slots[kDecodeOutputSlot], DType::kFloat32, space));
  TESSERA_RETURN_IF_ERROR(CheckTensor("lse", lse, slots[kDecodeLseSlot], DType::kFloat32, space));
  TESSERA_RETURN_IF_ERROR(CheckDense("query", query));
  TESSERA_RETURN_IF_ERROR(CheckDense("output", output));
  return CheckDense("lse", lse);
}

Status CheckCache(const CacheLayer& cache, const DecodeSpec& spec, int kv_heads) {
  const auto reject = [](const char* field, const auto& value, const auto& expected) {
    return absl::InvalidArgumentError(
        absl::StrCat("cache: ", field, " is ", value, "; this rank's plan needs ", expected));
  };
  if (cache.dtype != spec.dtype) return reject("dtype", std::string(Name(cache.dtype)), std::string(Name(spec.dtype)));
  if (cache.kv_heads != kv_heads) return reject("kv_heads", cache.kv_heads, kv_heads);
  if (cache.qk_width != spec.qk_width) return reject("qk_width", cache.qk_width, spec.qk_width);
  if (cache.v_width != spec.v_width) return reject("v_width", cache.v_width, spec.v_width);
  return absl::OkStatus();
}

Status CheckRowsCovered(int64_t covered, int64_t rows) {
  if (covered == rows) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("sequences: they have %d query rows and the query tensor %d; every row must belong to one "
                      "sequence, with an empty range where it sees nothing of this rank's cache",
                      covered, rows));
}

}  // namespace tessera
