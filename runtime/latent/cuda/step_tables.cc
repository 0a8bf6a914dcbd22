#include "runtime/latent/cuda/step_tables.h"

#include <algorithm>

namespace tessera {

StatusOr<LatentStepTables> LatentStepTables::Create(const CudaDevice& device, int64_t max_rows, CUstream_st* stream) {
  constexpr std::string_view kWhat = "the tables of a latent decode step";
  LatentStepTables tables;
  tables.slots_offset_ = max_rows * static_cast<int64_t>(sizeof(int64_t));
  const int64_t bytes = tables.slots_offset_ + max_rows * static_cast<int64_t>(sizeof(cuda::CacheSlot));
  TESSERA_ASSIGN_OR_RETURN(tables.staging_, PinnedBuffer::Allocate(device, bytes, kWhat));
  TESSERA_ASSIGN_OR_RETURN(tables.tables_, DeviceBuffer::Allocate(device, bytes, kWhat, stream));
  TESSERA_ASSIGN_OR_RETURN(tables.copied_, CudaEvent::Create(device));
  tables.stream_ = stream;
  return tables;
}

Status LatentStepTables::Upload(std::span<const int64_t> positions, std::span<const cuda::CacheSlot> slots) {
  TESSERA_RETURN_IF_ERROR(copied_.Synchronize("the upload of the latent decode step before"));
  std::ranges::copy(positions, reinterpret_cast<int64_t*>(staging_.data()));
  std::ranges::copy(slots, reinterpret_cast<cuda::CacheSlot*>(staging_.data() + slots_offset_));
  // One copy: the tables of a step are small and a copy costs microseconds whatever its length.
  TESSERA_RETURN_IF_ERROR(CopyAsync(tables_.data(), staging_.data(), tables_.bytes(), stream_));
  return copied_.Record(stream_);
}

}  // namespace tessera
