// What every DecodeKernel refuses, and the geometry of a paged cache.
#pragma once

#include "kernels/decode.h"

namespace tessera {

// InvalidArgument naming the first precondition of DecodeKernel::Decode that `args` breaks, in this order: memory
// space, dtypes, widths, query/output/LSE agreement, cache, heads, sequences (rows, visible ranges, page numbers),
// threads.
Status CheckDecodeArgs(const DecodeArgs& args);

inline DecodeTraits TraitsOf(const DecodeArgs& args) {
  const CacheLayer& cache = args.cache;
  const bool value_in_key = cache.key == cache.value && cache.key_row_stride == cache.value_row_stride &&
                            cache.key_head_stride == cache.value_head_stride && cache.v_width <= cache.qk_width;
  return {cache.dtype, cache.qk_width, cache.v_width, value_in_key};
}

// The key/value head of the cache that query head `head` of the call reads.
inline int KeyHeadOf(const DecodeArgs& args, int head) {
  return (args.first_query_head + head) / args.group - args.first_kv_head;
}

inline const std::byte* KeyAt(const CacheLayer& cache, std::span<const int32_t> pages, int64_t row, int kv_head) {
  return cache.key + pages[row / cache.page_tokens] * cache.page_stride +
         row % cache.page_tokens * cache.key_row_stride + kv_head * cache.key_head_stride;
}
inline const std::byte* ValueAt(const CacheLayer& cache, std::span<const int32_t> pages, int64_t row, int kv_head) {
  return cache.value + pages[row / cache.page_tokens] * cache.page_stride +
         row % cache.page_tokens * cache.value_row_stride + kv_head * cache.value_head_stride;
}

}  // namespace tessera
