// SliceExchange (runtime/latent/slice_exchange.h) between GPUs, in stream order. Internal to latent attention.
#pragma once

#include "collectives/stream_communicator.h"
#include "partition/decode.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"
#include "runtime/latent/slice_exchange.h"

namespace tessera {

// Tensors are fp32 device memory, dense, with the rows of one step. Calls are collective over all ranks of the decoder;
// ranks that are the only one to serve their heads leave them out.
class CudaSliceExchange {
 public:
  // `data`: the ranks of `spec`; it outlives this.
  CudaSliceExchange(const DecodeSpec& spec, StreamCommunicator& data)
      : data_(data), place_(SlicePlaceOf(spec, data.rank())), total_heads_(place_.heads.back().end) {}

  bool alone() const { return place_.ranks.size() == 1; }
  // Of the memory that calls of so many rows pack messages in.
  int64_t PackedBytes(int64_t rows, int query_width, int value_width) const;

  // From own [rows, own heads, width] to all [rows, all heads of the place, width].
  Status Gather(const ConstTensorView& own, std::byte* packed, const TensorView& all, CUstream_st* stream) const;
  // From every slice's value [rows, all heads of the place, width] to their sum own [rows, own heads, width], in the
  // order of the slices. Not in place.
  Status SumOwn(const ConstTensorView& value, std::byte* packed, const TensorView& own, CUstream_st* stream) const;

 private:
  int64_t OwnHeads() const;

  StreamCommunicator& data_;
  SlicePlace place_;
  int total_heads_;
};

}  // namespace tessera
