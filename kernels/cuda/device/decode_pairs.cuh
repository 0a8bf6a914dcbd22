// The (query row, head) pairs of a thread block of a decode step, all of which read one key head: what they see of the
// cache, where they are read and where their results go.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/decode_params.h"

namespace tessera::cuda {

// At most kPairs of them.
template <typename Element, int kPairs>
class DecodePairs {
 public:
  __device__ __forceinline__ explicit DecodePairs(const DecodeParams& params)
      : p_(params), sequence_(params.sequences[blockIdx.z]) {
    const int begin = (p_.score.first_kv_head + kv_head()) * p_.score.group - p_.score.first_query_head;
    first_head_ = max(begin, 0);
    heads_ = max(min(begin + p_.score.group, p_.score.heads) - first_head_, 0);
    first_pair_ = static_cast<int>(blockIdx.x) % params.tiles * kPairs;
    pairs_ = min(sequence_.rows * heads_ - first_pair_, kPairs);
  }

  __device__ __forceinline__ int kv_head() const { return static_cast<int>(blockIdx.y); }
  __device__ __forceinline__ int split() const { return static_cast<int>(blockIdx.x) / p_.tiles; }
  __device__ __forceinline__ int pairs() const { return pairs_; }
  __device__ __forceinline__ VisibleRows VisibleOf(int pair) const {
    return p_.visible[sequence_.first_visible + (first_pair_ + pair) / heads_];
  }

  // Cached rows that some pair sees lie in [begin, end); every pair sees [all_begin, all_end).
  struct Ranges {
    int begin, end, all_begin, all_end;
  };
  // By a whole warp.
  __device__ __forceinline__ Ranges FindRanges() const {
    Ranges r{0x7fffffff, 0, 0, 0x7fffffff};
    for (int pair = static_cast<int>(threadIdx.x) % 32; pair < pairs_; pair += 32) {
      const VisibleRows visible = VisibleOf(pair);
      r.all_begin = max(r.all_begin, static_cast<int>(visible.begin));
      r.all_end = min(r.all_end, static_cast<int>(visible.end));
      if (visible.begin >= visible.end) continue;
      r.begin = min(r.begin, static_cast<int>(visible.begin));
      r.end = max(r.end, static_cast<int>(visible.end));
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      r.begin = min(r.begin, __shfl_xor_sync(~0u, r.begin, distance));
      r.end = max(r.end, __shfl_xor_sync(~0u, r.end, distance));
      r.all_begin = max(r.all_begin, __shfl_xor_sync(~0u, r.all_begin, distance));
      r.all_end = min(r.all_end, __shfl_xor_sync(~0u, r.all_end, distance));
    }
    if (r.begin > r.end) r.begin = r.end;
    return r;
  }

  // This split's part of `ranges`, in blocks of kKeys rows: [x, y).
  template <int kKeys>
  __device__ __forceinline__ int2 Share(const Ranges& ranges) const {
    const int blocks = (ranges.end - ranges.begin + kKeys - 1) / kKeys;
    const int share = (blocks + p_.splits - 1) / p_.splits;
    return make_int2(ranges.begin + min(split() * share, blocks) * kKeys,
                     min(ranges.begin + min((split() + 1) * share, blocks) * kKeys, ranges.end));
  }

  // Null for pairs that do not exist.
  __device__ __forceinline__ const uint16_t* Query(int pair) const {
    const int number = first_pair_ + pair;
    if (pair >= pairs_) return nullptr;
    return p_.query.data + int64_t{sequence_.first_query_row + number / heads_} * p_.query.row_stride +
           (first_head_ + number % heads_) * p_.query.head_stride;
  }

  // Of a cached row, in pages of the pool.
  __device__ __forceinline__ int32_t Page(int row) const {
    return p_.pages[sequence_.first_page + row / p_.page_tokens];
  }
  // Bytes from the pool's first key, or value, of head 0.
  __device__ __forceinline__ int64_t KeyOffset(int row) const {
    return Page(row) * p_.page_stride + row % p_.page_tokens * p_.key_row_stride + kv_head() * p_.key_head_stride;
  }
  __device__ __forceinline__ int64_t ValueOffset(int row) const {
    return Page(row) * p_.page_stride + row % p_.page_tokens * p_.value_row_stride + kv_head() * p_.value_head_stride;
  }

  struct Place {
    float* output;
    float* lse;
  };
  __device__ __forceinline__ Place PlaceOf(int pair) const {
    const int number = first_pair_ + pair;
    const int64_t row = sequence_.first_query_row + number / heads_;
    const int head = first_head_ + number % heads_;
    if (p_.split_output == nullptr) {
      return {p_.output.data + row * p_.output.row_stride + head * p_.output.head_stride,
              p_.lse.data + row * p_.lse.row_stride + head * p_.lse.head_stride};
    }
    const int64_t at = (split() * p_.query_rows + row) * p_.score.heads + head;
    return {p_.split_output + at * p_.score.v_width, p_.split_lse + at};
  }

  // Rare and slow: adds values that are not finite to the stored outputs of the pairs that see them (again, where they
  // had not been cleared; it makes no difference). Their weights do not matter. Shared by `threads` threads.
  __device__ __forceinline__ void AddNonFinite(int begin, int end, int thread, int threads) const {
    for (int row = begin; row < end; ++row) {
      const auto* const value = reinterpret_cast<const uint16_t*>(p_.value + ValueOffset(row));
      for (int column = thread; column < p_.score.v_width; column += threads) {
        const float v = Element::ToFloat(value[column]);
        if (fabsf(v) < INFINITY) continue;
        for (int pair = 0; pair < pairs_; ++pair) {
          const VisibleRows visible = VisibleOf(pair);
          if (row >= visible.begin && row < visible.end) PlaceOf(pair).output[column] += v;
        }
      }
    }
  }

 private:
  const DecodeParams& p_;
  const DecodeRows sequence_;
  int first_head_, heads_, first_pair_, pairs_;
};

// Shared memory by its 32-bit address.
__device__ __forceinline__ float LoadShared(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ void StoreShared(uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" : : "r"(address), "f"(value) : "memory");
}
__device__ __forceinline__ void StoreShared(uint32_t address, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" : : "r"(address), "r"(value) : "memory");
}

}  // namespace tessera::cuda
