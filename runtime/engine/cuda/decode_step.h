// The sequences, pages and visible ranges of one decode step in device memory: uploaded once, read by every layer's
// launch and by every replay of a captured one.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/cuda/device/decode_params.h"
#include "kernels/decode.h"
#include "runtime/base/status.h"
#include "runtime/device/cuda/buffer.h"
#include "runtime/device/cuda/device.h"
#include "runtime/device/cuda/stream.h"

namespace tessera {

// The most a step may hold.
struct DecodeStepLimits {
  int sequences = 1;
  int rows_per_sequence = 1;
  int64_t rows = 1;      // query rows of all sequences
  int64_t pages = 0;     // page numbers of all sequences; a page that two share counts twice
  int page_tokens = 64;  // of the cache
};
Status Validate(const DecodeStepLimits& limits);  // InvalidArgument names the option of CudaDecodeOptions

// Move-only. Made by CudaDecodeAttention::MakeStep.
class CudaDecodeStep {
 public:
  // Memory belongs to `own`, which outlives this. Waits for it to exist. The limits are valid.
  static StatusOr<CudaDecodeStep> Create(const CudaDevice& device, const CudaStream& own,
                                         const DecodeStepLimits& limits);

  // Asynchronous on `stream`, for work that comes later in its order. What `sequences` refers to may go at once. At
  // most one upload runs ahead: the next waits on the host until the stream has passed this one. InvalidArgument beyond
  // the limits, or when the sequences are not what DecodeArgs asks for, names it and changes nothing.
  // FailedPrecondition under capture: a graph replays launches with new steps, it does not replay the steps.
  Status Upload(std::span<const DecodeSequence> sequences, CUstream_st* stream);

  const DecodeStepLimits& limits() const { return limits_; }
  int64_t rows() const { return rows_; }  // query rows of the sequences uploaded last
  // Device memory, as DecodePointers takes it. Never moves.
  const cuda::DecodeRows* sequences() const { return reinterpret_cast<const cuda::DecodeRows*>(tables_.data()); }
  const cuda::VisibleRows* visible() const {
    return reinterpret_cast<const cuda::VisibleRows*>(tables_.data() + visible_offset_);
  }
  const int32_t* pages() const { return reinterpret_cast<const int32_t*>(tables_.data() + pages_offset_); }

 private:
  CudaDecodeStep() = default;

  DecodeStepLimits limits_;
  // [sequences] DecodeRows, [rows] VisibleRows, [pages] int32.
  int64_t visible_offset_ = 0, pages_offset_ = 0;
  PinnedBuffer staging_;
  DeviceBuffer tables_;
  CudaEvent copied_;  // the last upload
  CUstream_st* own_ = nullptr;
  int64_t rows_ = 0;
};

}  // namespace tessera
