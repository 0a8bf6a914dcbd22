// What one rank computes between a layer's hidden state and its summand of the output, in device memory. Made once for
// the largest step; every layer and step overwrites it. Internal to latent attention.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/mla.h"
#include "runtime/base/tensor.h"
#include "runtime/latent/decode_setup.h"

namespace tessera {

// Dense views of [rows, ...]; fp32 unless stated. Compute: the dtype of the projections' weights; cache: the cache's.
// Those in the compute dtype are not needed, and without memory, where that is fp32.
struct LatentTensors {
  TensorView hidden;            // [1, D] compute
  TensorView kv;                // [1, C + dr]
  TensorView cache_rows;        // [1, Cs + dr] cache
  TensorView low;               // [1, rq], without rows where there is no query rank
  TensorView low_rounded;       // the same, compute
  TensorView query;             // [projected heads, dn + dr]
  TensorView all_query;         // [absorbed heads, dn + dr]; `query` itself without slices
  TensorView nope;              // [absorbed heads, dn] compute
  TensorView latent_query;      // [absorbed heads, Cs]
  TensorView absorbed;          // [absorbed heads, Cs + dr] cache
  TensorView attended;          // [attended heads, Cs]
  TensorView lse;               // [attended heads, 1]
  TensorView latent_rounded;    // [value heads, Cs] compute
  TensorView value;             // [value heads, dv]
  TensorView own_value;         // [output heads, dv]; `value` itself without slices
  TensorView value_rounded;     // [output heads, dv] compute
  TensorView summand;           // [1, D]
  std::byte* packed = nullptr;  // of the exchange between slices

  // The bytes that a step of `rows` rows takes, each tensor 256-byte aligned; with `memory` the tensors are put there.
  static int64_t Place(const MlaShape& shape, const MlaDecodeSetup& setup, DType compute, int64_t rows,
                       int64_t packed_bytes, std::byte* memory, LatentTensors& tensors);
};

// Columns [first, first + width) of every row and head.
inline TensorView ColumnsOf(const TensorView& view, int64_t first, int width) {
  TensorView part = view;
  part.data = static_cast<std::byte*>(view.data) + first * static_cast<int64_t>(SizeInBytes(view.dtype));
  part.width = width;
  return part;
}
// Heads [first, first + heads) of every row.
inline TensorView HeadsOf(const TensorView& view, int first, int heads) {
  TensorView part = view;
  part.data = view.At(0, first);
  part.heads = heads;
  return part;
}
// The heads of a dense tensor's row as one.
template <typename Byte>
BasicTensorView<Byte> Joined(const BasicTensorView<Byte>& view) {
  BasicTensorView<Byte> whole = view;
  whole.width = view.heads * view.width;
  whole.heads = 1;
  whole.head_stride = whole.width;
  return whole;
}

}  // namespace tessera
