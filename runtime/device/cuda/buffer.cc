#include "runtime/device/cuda/buffer.h"

#include <cuda_runtime.h>

#include "runtime/device/cuda/check.h"

namespace tessera {
namespace {

Status CheckBytes(std::string_view name, int64_t bytes) {
  if (bytes >= 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(std::string(name), " is ", bytes, "; it must not be negative"));
}

Status NoMemory(const CudaDevice& device, int64_t bytes, std::string_view what) {
  const StatusOr<int64_t> free_bytes = device.FreeBytes();
  return absl::ResourceExhaustedError(absl::StrCat(
      std::string(what), " needs ", bytes, " bytes of device memory, but on ", device.ToString(), " ",
      free_bytes.ok() ? absl::StrCat(*free_bytes) : "an unknown part", " of ", device.total_bytes(), " are free"));
}

}  // namespace

StatusOr<DeviceBuffer> DeviceBuffer::Allocate(const CudaDevice& device, int64_t bytes, std::string_view what,
                                              CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckBytes("bytes", bytes));
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  TESSERA_RETURN_IF_ERROR(device.MakeCurrent());
  void* data = nullptr;
  const cudaError_t code = cudaMallocAsync(&data, static_cast<size_t>(bytes), stream);
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return NoMemory(device, bytes, what);
  }
  TESSERA_RETURN_IF_ERROR(CheckCuda(code, what));
  buffer.data_ = {static_cast<std::byte*>(data), Free{stream}};
  buffer.bytes_ = bytes;
  return buffer;
}

// A lost context has nothing to give back, and a destructor has nobody to tell.
void DeviceBuffer::Free::operator()(std::byte* data) const {
  (void)cudaFreeAsync(data, stream);
}

StatusOr<PinnedBuffer> PinnedBuffer::Allocate(const CudaDevice& device, int64_t bytes, std::string_view what) {
  TESSERA_RETURN_IF_ERROR(CheckBytes("bytes", bytes));
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  TESSERA_RETURN_IF_ERROR(device.MakeCurrent());
  void* data = nullptr;
  const cudaError_t code = cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (code == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return absl::ResourceExhaustedError(
        absl::StrCat(std::string(what), " needs ", bytes, " bytes of pinned host memory and they are not to be had"));
  }
  TESSERA_RETURN_IF_ERROR(CheckCuda(code, what));
  buffer.data_.reset(static_cast<std::byte*>(data));
  buffer.bytes_ = bytes;
  return buffer;
}

void PinnedBuffer::Free::operator()(std::byte* data) const {
  (void)cudaFreeHost(data);
}

Status CopyAsync(void* to, const void* from, int64_t bytes, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckBytes("bytes", bytes));
  if (bytes == 0) return DeviceFault();
  return CheckCuda(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream), "cudaMemcpyAsync");
}

Status CopyRowsAsync(void* to, int64_t to_pitch_bytes, const void* from, int64_t from_pitch_bytes, int64_t row_bytes,
                     int64_t rows, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckBytes("row_bytes", row_bytes));
  TESSERA_RETURN_IF_ERROR(CheckBytes("rows", rows));
  if (to_pitch_bytes < row_bytes || from_pitch_bytes < row_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("rows of ", row_bytes, " bytes do not fit pitches of ",
                                                   to_pitch_bytes, " and ", from_pitch_bytes));
  }
  if (row_bytes == 0 || rows == 0) return DeviceFault();
  return CheckCuda(
      cudaMemcpy2DAsync(to, static_cast<size_t>(to_pitch_bytes), from, static_cast<size_t>(from_pitch_bytes),
                        static_cast<size_t>(row_bytes), static_cast<size_t>(rows), cudaMemcpyDefault, stream),
      "cudaMemcpy2DAsync");
}

Status FillAsync(void* to, uint8_t value, int64_t bytes, CUstream_st* stream) {
  TESSERA_RETURN_IF_ERROR(CheckBytes("bytes", bytes));
  if (bytes == 0) return DeviceFault();
  return CheckCuda(cudaMemsetAsync(to, value, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
}

}  // namespace tessera
