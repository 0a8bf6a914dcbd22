// The moments of latents that are on a GPU, by cuBLAS: what PcaBasis (runtime/latent/reparameterization.h) needs of a
// calibration text, without the latents leaving the GPU.
#pragma once

#include <optional>

#include "kernels/cuda/linear.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/device.h"
#include "runtime/latent/reparameterization.h"

namespace tessera {

// Not thread-safe. Everything happens on the stream it was created with, which outlives it.
class CudaLatentMoment {
 public:
  // Sums on the GPU are fp32; those of so many tokens are added up in fp64 on the host.
  static constexpr int64_t kTokensPerSum = 8192;

  // Of latents [*, 1, latent] in `dtype` (fp32, bf16 or fp16). InvalidArgument for another dtype or latent < 1,
  // ResourceExhausted without the memory: 4 latent^2 bytes and cuBLAS's workspace.
  static StatusOr<CudaLatentMoment> Create(const CudaDevice& device, int latent, DType dtype, CUstream_st* stream);

  // latents: [rows, 1, latent], normalised, before gamma, device memory with unit width stride; any number of rows.
  // Asynchronous, but every kTokensPerSum tokens it waits for the sums: DeadlineExceeded when they take a minute. After
  // an error the moment is lost. InvalidArgument, before anything changed, for another shape or dtype.
  Status Add(const ConstTensorView& latents);
  // Of everything added so far; more may be added. Waits likewise. InvalidArgument when there were no tokens, or one
  // held a value that is not finite.
  StatusOr<LatentMoment> Take();

 private:
  CudaLatentMoment(const CudaDevice& device, int latent, DType dtype, CUstream_st* stream)
      : device_(device), latent_(latent), dtype_(dtype), stream_(stream) {}
  Status Clear();
  // The GPU's sums to the host's.
  Status Fetch();

  CudaDevice device_;
  int latent_;
  DType dtype_;
  CUstream_st* stream_;
  std::optional<cuda::Cublas> cublas_;
  DeviceBuffer workspace_;
  DeviceBuffer sums_;           // [latent + 1, latent] fp32: the second moment, then the first
  DeviceBuffer ones_;           // [kTokensPerSum] of the latents' dtype
  PinnedBuffer fetched_;        // sums_ on the host
  int64_t pending_tokens_ = 0;  // in sums_
  int64_t tokens_ = 0;          // in second_ and first_
  Matrix64 second_;             // [latent, latent]
  std::vector<double> first_;   // [latent]
};

}  // namespace tessera
