#include "launcher/lm/decode_gpu.h"

#include <vector>

#include "collectives/agreement.h"
#include "collectives/nccl/communicator.h"

namespace tessera::launcher {

StatusOr<std::unique_ptr<DecodeGpu>> DecodeGpu::Open(Communicator& comm) {
  TESSERA_ASSIGN_OR_RETURN(const CudaDevice device, OpenDeviceOfRank(comm));
  TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<StreamCommunicator> data, MakeNcclCommunicator(comm, device));
  StatusOr<CudaStream> stream = CudaStream::Create(device);
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(comm, stream.status(), "creating a stream"));
  return std::unique_ptr<DecodeGpu>(new DecodeGpu{device, *std::move(stream), std::move(data)});
}

StatusOr<DeviceBuffer> DecodeGpu::Allocate(int64_t bytes, std::string_view what) const {
  return DeviceBuffer::Allocate(device, bytes, what, stream.handle());
}

StatusOr<DeviceBuffer> DecodeGpu::Upload(const void* from, int64_t bytes, std::string_view what) const {
  TESSERA_ASSIGN_OR_RETURN(DeviceBuffer buffer, Allocate(bytes, what));
  if (bytes == 0) return buffer;
  TESSERA_RETURN_IF_ERROR(CopyAsync(buffer.data(), from, bytes, stream.handle()));
  TESSERA_RETURN_IF_ERROR(stream.Synchronize(absl::StrCat("copying ", std::string(what), " to the GPU")));
  return buffer;
}

Status DecodeGpu::Fetch(void* to, const DeviceBuffer& from, int64_t bytes) const {
  if (bytes == 0) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(CopyAsync(to, from.data(), bytes, stream.handle()));
  return stream.Synchronize("copying the result from the GPU");
}

Status DecodeGpu::StoreRows(const CudaPagedCache& cache, SequenceId sequence, int64_t first, cuda::CachePart part,
                            const TensorView& rows) const {
  std::vector<cuda::CacheSlot> slots;
  for (int64_t i = 0; i < rows.rows; ++i) slots.push_back(cache.SlotOf(sequence, first + i));
  const auto slot_bytes = static_cast<int64_t>(slots.size() * sizeof(cuda::CacheSlot));
  TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer device_rows, Upload(rows.data, rows.bytes(), "rows of the context"));
  TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer device_slots,
                           Upload(slots.data(), slot_bytes, "places of the context's rows"));
  TensorView view = rows;
  view.data = device_rows.data();
  view.space = MemorySpace::kDevice;
  TESSERA_RETURN_IF_ERROR(cuda::AppendToCache(view, reinterpret_cast<const cuda::CacheSlot*>(device_slots.data()),
                                              cache.layer(0), part, stream.handle()));
  return stream.Synchronize("filling the cache");
}

}  // namespace tessera::launcher
