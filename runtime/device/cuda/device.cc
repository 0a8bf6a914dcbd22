#include "runtime/device/cuda/device.h"

#include <cuda_runtime.h>

#include <cstring>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/device/cuda/check.h"

namespace tessera {
namespace {

// A stream-ordered pool gives freed memory back to the system at every synchronisation unless told to keep it.
Status KeepFreedMemory(int index) {
  cudaMemPool_t pool = nullptr;
  TESSERA_RETURN_IF_ERROR(CheckCuda(cudaDeviceGetDefaultMemPool(&pool, index), "cudaDeviceGetDefaultMemPool"));
  uint64_t threshold = std::numeric_limits<uint64_t>::max();
  return CheckCuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold),
                   "cudaMemPoolSetAttribute");
}

}  // namespace

StatusOr<int> CudaDevice::Count() {
  int count = 0;
  TESSERA_RETURN_IF_ERROR(CheckCuda(cudaGetDeviceCount(&count), "looking for GPUs"));
  return count;
}

StatusOr<CudaDevice::Identity> CudaDevice::Identify(int index) {
  cudaDeviceProp properties;
  TESSERA_RETURN_IF_ERROR(CheckCuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties"));
  Identity identity;
  static_assert(sizeof properties.uuid == sizeof identity.uuid);
  std::memcpy(identity.uuid.data(), &properties.uuid, sizeof properties.uuid);
  char bus_id[32] = {};
  TESSERA_RETURN_IF_ERROR(CheckCuda(cudaDeviceGetPCIBusId(bus_id, sizeof bus_id, index), "cudaDeviceGetPCIBusId"));
  identity.pci_bus_id = bus_id;
  return identity;
}

StatusOr<CudaDevice> CudaDevice::Open(int index) {
  TESSERA_ASSIGN_OR_RETURN(const int count, Count());
  if (index < 0 || index >= count) {
    return absl::InvalidArgumentError(
        absl::StrCat("GPU ", index, " does not exist: this process sees ", count, count == 1 ? " GPU" : " GPUs"));
  }
  TESSERA_RETURN_IF_ERROR(CheckCuda(cudaSetDevice(index), "cudaSetDevice"));
  cudaDeviceProp properties;
  TESSERA_RETURN_IF_ERROR(CheckCuda(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties"));
  CudaDevice device;
  device.index_ = index;
  device.name_ = properties.name;
  device.capability_ = {properties.major, properties.minor};
  device.multiprocessors_ = properties.multiProcessorCount;
  device.total_bytes_ = static_cast<int64_t>(properties.totalGlobalMem);
  device.shared_bytes_per_block_ = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  device.l2_bytes_ = properties.l2CacheSize;
  TESSERA_ASSIGN_OR_RETURN(device.identity_, Identify(index));

  if (const std::string reason = WhyNotBuiltFor(device.capability_, BuiltArchitectures()); !reason.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(device.ToString(), ": ", reason));
  }
  TESSERA_RETURN_IF_ERROR(KeepFreedMemory(index));
  return device;
}

StatusOr<int64_t> CudaDevice::FreeBytes() const {
  TESSERA_RETURN_IF_ERROR(MakeCurrent());
  size_t free_bytes = 0, total_bytes = 0;
  TESSERA_RETURN_IF_ERROR(CheckCuda(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo"));
  return static_cast<int64_t>(free_bytes);
}

Status CudaDevice::MakeCurrent() const {
  return CheckCuda(cudaSetDevice(index_), "cudaSetDevice");
}

Status CudaDevice::Synchronize() const {
  TESSERA_RETURN_IF_ERROR(MakeCurrent());
  return CheckCuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

std::string CudaDevice::ToString() const {
  return absl::StrCat("GPU ", index_, " (", name_, ", ", capability_.ToString(), ")");
}

std::vector<std::string> BuiltArchitectures() {
  return absl::StrSplit(TESSERA_CUDA_ARCHITECTURES, ',');
}

std::string WhyNotBuiltFor(ComputeCapability capability, const std::vector<std::string>& architectures) {
  const int wanted = capability.major * 10 + capability.minor;
  for (const std::string& architecture : architectures) {
    const bool specific =
        !architecture.empty() && !absl::ascii_isdigit(static_cast<unsigned char>(architecture.back()));
    int number = 0;
    if (!absl::SimpleAtoi(specific ? architecture.substr(0, architecture.size() - 1) : architecture, &number)) continue;
    if (specific ? number == wanted : number <= wanted) return "";
  }
  return absl::StrCat("compute capability ", capability.ToString(), " is not served: this build has code for ",
                      absl::StrJoin(architectures, ", "), "; build with -DTESSERA_CUDA_ARCHITECTURES=", wanted);
}

}  // namespace tessera
