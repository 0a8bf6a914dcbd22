#include "runtime/engine/cuda/regions.h"

#include "kernels/cuda/steps.h"
#include "runtime/device/cuda/buffer.h"

namespace tessera {
namespace {

// Rows of consecutive heads: runs of `bytes`, `pitch` apart.
struct Runs {
  std::byte* first;
  int64_t bytes;
  int64_t pitch;
};
Runs RunsOf(const SlotTable& slots, const Region& region) {
  const Slot& slot = slots.slot(region.slot);
  return {slots.RegionData(region), int64_t{region.heads.size()} * slot.width * slot.element_bytes,
          slots.RowBytes(region.slot)};
}

Status CopyRuns(const Runs& from, const Runs& to, int64_t rows, CUstream_st* stream) {
  if (rows == 0 || from.bytes == 0) return absl::OkStatus();
  return cuda::CopyRows(to.first, to.pitch, from.first, from.pitch, from.bytes, rows, stream);
}

}  // namespace

Status PackAsync(const SlotTable& slots, const Region& region, std::byte* packed, CUstream_st* stream) {
  const Runs runs = RunsOf(slots, region);
  return CopyRuns(runs, {packed, runs.bytes, runs.bytes}, region.rows.size(), stream);
}

Status UnpackAsync(const SlotTable& slots, const Region& region, const std::byte* packed, CUstream_st* stream) {
  const Runs runs = RunsOf(slots, region);
  return CopyRuns({const_cast<std::byte*>(packed), runs.bytes, runs.bytes}, runs, region.rows.size(), stream);
}

Status CopyRegionAsync(const SlotTable& slots, const Region& from, const Region& to, CUstream_st* stream) {
  return CopyRuns(RunsOf(slots, from), RunsOf(slots, to), from.rows.size(), stream);
}

Status CopyTensorAsync(const ConstTensorView& from, const TensorView& to, CUstream_st* stream) {
  const auto element = static_cast<int64_t>(SizeInBytes(from.dtype));
  if (from.rows == 0) return absl::OkStatus();
  for (int head = 0; head < from.heads; ++head) {
    TESSERA_RETURN_IF_ERROR(CopyRowsAsync(to.At(0, head), to.row_stride * element, from.At(0, head),
                                          from.row_stride * element, from.width * element, from.rows, stream));
  }
  return absl::OkStatus();
}

}  // namespace tessera
