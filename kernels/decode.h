// Attention of a few query rows over a paged cache: what one decode step computes on one rank. Split over key/value heads,
// sequences and keys between threads, with the partial results merged in a fixed order.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/dtype.h"
#include "runtime/base/geometry.h"
#include "runtime/base/status.h"
#include "runtime/base/tensor.h"

namespace tessera {

// One layer of a paged pool, host memory. Row r of a sequence is row r % page_tokens of the sequence's page
// r / page_tokens. Key of (page p, row r, kv head j) starts at key + p * page_stride + r * key_row_stride + j *
// key_head_stride (all in bytes) and has qk_width elements; the value likewise with v_width.
struct CacheLayer {
  const std::byte* key = nullptr;
  const std::byte* value = nullptr;  // == key for a latent cache: the value is the first v_width columns of the key row
  DType dtype = DType::kBFloat16;
  int kv_heads = 1;
  int qk_width = 0;
  int v_width = 0;
  int page_tokens = 0;
  int64_t page_stride = 0;
  int64_t key_row_stride = 0;
  int64_t key_head_stride = 0;
  int64_t value_row_stride = 0;
  int64_t value_head_stride = 0;
};

// Query rows of one sequence and what they see. Rows of different sequences never meet.
struct DecodeSequence {
  int64_t first_query_row = 0;        // in the query tensor
  std::span<const int32_t> pages;     // page numbers, in order of the sequence's local cache rows
  std::span<const Range> visible;     // per query row of this sequence: the local cache rows it attends; may be empty
};

struct DecodeArgs {
  ConstTensorView query;  // [rows, heads, qk_width], the cache's dtype
  TensorView output;      // [rows, heads, v_width] fp32: partial O, overwritten for the rows of `sequences`
  TensorView lse;         // [rows, heads, 1] fp32: partial LSE (natural log), overwritten; no visible row: O = 0, LSE = -inf
  CacheLayer cache;
  std::span<const DecodeSequence> sequences;
  // Query head h of this call reads key/value head (first_query_head + h) / group - first_kv_head of the cache.
  int first_query_head = 0;
  int first_kv_head = 0;
  int group = 1;
  float scale = 1.0f;     // s = scale * (q . k)
  float soft_cap = 0.0f;  // > 0: s = soft_cap * tanh(s / soft_cap)
  int threads = 1;
  const std::atomic<bool>* cancelled = nullptr;  // as in AttendArgs
};

struct DecodeTraits {
  DType dtype = DType::kBFloat16;
  int qk_width = 0;
  int v_width = 0;
  bool value_in_key = false;  // latent cache
};

class DecodeKernel {
 public:
  virtual ~DecodeKernel() = default;
  virtual std::string_view name() const = 0;  // e.g. "reference", "cpu-avx512-bf16"
  virtual std::string WhyNot(const DecodeTraits& traits) const = 0;  // empty when served
  // Not collective, synchronous, thread-safe. InvalidArgument when views disagree. The bits do not depend on the number
  // of threads.
  virtual Status Decode(const DecodeArgs& args) const = 0;
};

// All implementations compiled in, fastest first; the fp64 reference is last.
std::span<const DecodeKernel* const> DecodeKernels();
// As FindAttentionKernel.
StatusOr<const DecodeKernel*> FindDecodeKernel(const DecodeTraits& traits, std::string_view name = {});

}  // namespace tessera
