#include "runtime/latent/cuda/moment.h"

#include <algorithm>
#include <chrono>

#include "runtime/device/cuda/stream.h"
#include "runtime/latent/cuda/upload.h"

namespace tessera {

StatusOr<CudaLatentMoment> CudaLatentMoment::Create(const CudaDevice& device, int latent, DType dtype,
                                                    CUstream_st* stream) {
  if (latent < 1) return absl::InvalidArgumentError(absl::StrCat("latent is ", latent, "; allowed: 1 or more"));
  if (dtype == DType::kFloat64) {
    return absl::InvalidArgumentError("the latents' dtype is fp64; it must be fp32, bf16 or fp16");
  }
  CudaLatentMoment made(device, latent, dtype, stream);
  const int64_t count = int64_t{latent} * latent;
  made.second_ = {latent, latent, std::vector<double>(count)};
  made.first_.resize(latent);
  TESSERA_ASSIGN_OR_RETURN(made.sums_, DeviceBuffer::Allocate(device, (count + latent) * int64_t{sizeof(float)},
                                                              "the moments of latents", stream));
  TESSERA_ASSIGN_OR_RETURN(made.fetched_,
                           PinnedBuffer::Allocate(device, made.sums_.bytes(), "the moments of latents on the host"));
  const int64_t workspace = cuda::Cublas::WorkspaceBytes(device.capability().major);
  TESSERA_ASSIGN_OR_RETURN(made.workspace_,
                           DeviceBuffer::Allocate(device, workspace, "the workspace of cuBLAS", stream));
  TESSERA_ASSIGN_OR_RETURN(made.cublas_, cuda::Cublas::Create(made.workspace_.data(), workspace));
  std::vector<std::byte> ones(kTokensPerSum * SizeInBytes(dtype));
  for (int64_t i = 0; i < kTokensPerSum; ++i) StoreFromFloat(ones.data(), dtype, i, 1.0f);
  DeviceUploads uploads(device, stream);
  TESSERA_ASSIGN_OR_RETURN(made.ones_, uploads.Add(std::move(ones), "a vector of ones"));
  TESSERA_RETURN_IF_ERROR(uploads.Finish());
  TESSERA_RETURN_IF_ERROR(made.Clear());
  return made;
}

Status CudaLatentMoment::Clear() {
  pending_tokens_ = 0;
  return FillAsync(sums_.data(), 0, sums_.bytes(), stream_);
}

Status CudaLatentMoment::Add(const ConstTensorView& latents) {
  if (latents.heads != 1 || latents.width != latent_ || latents.dtype != dtype_) {
    return absl::InvalidArgumentError(absl::StrCat("latents are [", latents.rows, ", ", latents.heads, ", ",
                                                   latents.width, "] ", std::string(Name(latents.dtype)),
                                                   "; needed: [rows, 1, ", latent_, "] ", std::string(Name(dtype_))));
  }
  float* const second = reinterpret_cast<float*>(sums_.data());
  for (int64_t row = 0; row < latents.rows;) {
    if (pending_tokens_ == kTokensPerSum) TESSERA_RETURN_IF_ERROR(Fetch());
    ConstTensorView piece = latents;
    piece.rows = std::min(latents.rows - row, kTokensPerSum - pending_tokens_);
    piece.data = latents.At(row, 0);
    TESSERA_RETURN_IF_ERROR(
        cublas_->AddMoments(piece, ones_.data(), second, second + int64_t{latent_} * latent_, stream_));
    pending_tokens_ += piece.rows;
    row += piece.rows;
  }
  return absl::OkStatus();
}

Status CudaLatentMoment::Fetch() {
  if (pending_tokens_ == 0) return absl::OkStatus();
  TESSERA_RETURN_IF_ERROR(CopyAsync(fetched_.data(), sums_.data(), sums_.bytes(), stream_));
  TESSERA_RETURN_IF_ERROR(
      WaitForSubmitted(device_, stream_, "adding up the moments of latents", std::chrono::minutes(1)));
  const auto* const sums = reinterpret_cast<const float*>(fetched_.data());
  const size_t count = second_.values.size();
  for (size_t i = 0; i < count; ++i) second_.values[i] += sums[i];
  for (size_t i = 0; i < first_.size(); ++i) first_[i] += sums[count + i];
  tokens_ += pending_tokens_;
  return Clear();
}

StatusOr<LatentMoment> CudaLatentMoment::Take() {
  TESSERA_RETURN_IF_ERROR(Fetch());
  return LatentMoment::FromSums(second_, first_, tokens_);
}

}  // namespace tessera
