// Decoding in fp32 arithmetic for any dtype. A block of cached rows is converted once, as rows; scores are dot products
// along the width, which need no transposition, and every row then serves all heads and query rows of its key head.
//
// Limits. A few heads are bound by memory: cache bytes / read bandwidth. Many are bound by arithmetic: 2 * pairs * (qk
// width + v width) * keys / peak flops, where pairs are (query row, head) of a key head. The two meet at bytes per
// element * peak / (2 * bandwidth) pairs, about 20 for a bf16 cache at 250 GFLOP/s and 13 GB/s, and half of that for a
// latent cache, whose rows are key and value. `tessera bench kernel` measures both limits and the share of the one that
// binds.
#if defined(TESSERA_KERNELS_CPU_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_DECODE_INL_H_
#undef TESSERA_KERNELS_CPU_DECODE_INL_H_
#else
#define TESSERA_KERNELS_CPU_DECODE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <span>

#include "kernels/cpu/decode.h"
#include "kernels/cpu/pack-inl.h"
#include "kernels/cpu/softmax-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Pairs whose dot products with four keys are summed in registers: 6 x 4 of 32 registers, or 2 x 4 of 16.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
inline constexpr int kDotRows = kDecodeRows;
#else
inline constexpr int kDotRows = 2;
#endif

// One row as fp32, padded with zeros.
HWY_INLINE void LoadRow(const void* row, DType dtype, int width, int stride, float* to) {
  ToFloats(row, dtype, width, to);
  std::memset(to + width, 0, static_cast<size_t>(stride - width) * sizeof(float));
}

void DecodeLoadQuery(const DecodeState& state, int pair, const void* row) {
  float* const to = reinterpret_cast<float*>(state.query) + static_cast<size_t>(pair) * state.qk_stride;
  LoadRow(row, state.dtype, state.qk_width, state.qk_stride, to);
  for (int i = 0; i < state.qk_width; ++i) to[i] *= state.query_factor;
}

HWY_INLINE void PrefetchRow(const std::byte* row, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) hwy::Prefetch(row + i);
}

void DecodeLoadBlock(const DecodeState& state, const DecodeHeadBlock& block, const DecodeHeadBlock& next) {
  const size_t element = SizeInBytes(state.dtype);
  for (int j = 0; j < block.count; ++j) {
    if (j < next.count) PrefetchRow(next.key[j], state.qk_width * element);
    LoadRow(block.key[j], state.dtype, state.qk_width, state.qk_stride, state.key + j * state.qk_stride);
  }
  // Keys that fill up a tile of four; their scores are not used.
  const int filled = (block.count + 3) / 4 * 4;
  std::memset(state.key + block.count * state.qk_stride, 0,
              static_cast<size_t>(filled - block.count) * state.qk_stride * sizeof(float));
  if (state.value_in_key) return;
  for (int j = 0; j < block.count; ++j) {
    if (j < next.count) PrefetchRow(next.value[j], state.v_width * element);
    LoadRow(block.value[j], state.dtype, state.v_width, state.v_stride, state.value + j * state.v_stride);
  }
}

#if HWY_TARGET != HWY_SCALAR
// The sum of a vector's 128-bit blocks, to four consecutive floats.
template <class D, class V>
HWY_INLINE void StoreBlockSums(D d, V v, float* to) {
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    StoreBlockSums(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), to);
  } else {
    hn::StoreU(v, d, to);
  }
}
#endif

// The sums of four vectors' lanes, to four consecutive floats.
HWY_INLINE void StoreFourSums(const FloatVec* v, float* to) {
#if HWY_TARGET == HWY_SCALAR
  for (int k = 0; k < 4; ++k) to[k] = hn::GetLane(v[k]);
#else
  const FloatTag d;
  // Transposes within 128-bit blocks while adding; then adds the blocks.
  const hn::RepartitionToWide<FloatTag> d2;
  const FloatVec ab = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const FloatVec cd = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto ab2 = hn::BitCast(d2, ab), cd2 = hn::BitCast(d2, cd);
  const FloatVec sums =
      hn::Add(hn::BitCast(d, hn::InterleaveLower(d2, ab2, cd2)), hn::BitCast(d, hn::InterleaveUpper(d2, ab2, cd2)));
  StoreBlockSums(d, sums, to);
#endif
}

// scores[r][j] = query r . key j for r < kRows and j < count, rounded up to a multiple of four.
template <int kRows>
HWY_INLINE void DotRows(const float* HWY_RESTRICT query, const float* HWY_RESTRICT key, int stride, int count,
                        float* HWY_RESTRICT scores) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int j = 0; j < count; j += 4, key += 4 * stride) {
    FloatVec sum[kRows][4];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[r][k] = hn::Zero(d);
    }
    for (int i = 0; i < stride; i += lanes) {
      FloatVec keys[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) keys[k] = hn::Load(d, key + k * stride + i);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const FloatVec q = hn::Load(d, query + r * stride + i);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) sum[r][k] = hn::MulAdd(q, keys[k], sum[r][k]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) StoreFourSums(sum[r], scores + r * kDecodeKeys + j);
  }
}

// output[r] += sum over j < count of weights[r][j] * value row j.
template <int kRows>
HWY_INLINE void AddDecodedValues(const float* weights, const float* value, int value_stride, int count, int v_stride,
                                 float* output) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto columns = [=]<int kVectors>(int i) HWY_ATTR {
    Multiply<kRows, kVectors>(weights, 1, kDecodeKeys, value + i, value_stride, count,
                              [=](int r, int c, FloatVec sum) HWY_ATTR {
                                float* const out = output + r * v_stride + i + c * lanes;
                                hn::Store(hn::Add(hn::Load(d, out), sum), d, out);
                              });
  };
  int i = 0;
  for (; i + kTileVectors * lanes <= v_stride; i += kTileVectors * lanes) columns.template operator()<kTileVectors>(i);
  for (; i < v_stride; i += lanes) columns.template operator()<1>(i);
}

template <int kRows>
HWY_NOINLINE void FoldRows(const DecodeState& state, int count, int first) {
  const float* const query = reinterpret_cast<const float*>(state.query) + static_cast<size_t>(first) * state.qk_stride;
  constexpr int kStep = kRows < kDotRows ? kRows : kDotRows;
  int r = 0;
  for (; r + kStep <= kRows; r += kStep) {
    DotRows<kStep>(query + r * state.qk_stride, state.key, state.qk_stride, count, state.score + r * kDecodeKeys);
  }
  for (; r < kRows; ++r) {
    DotRows<1>(query + r * state.qk_stride, state.key, state.qk_stride, count, state.score + r * kDecodeKeys);
  }
  const int padded = (count + kDecodeLanes - 1) / kDecodeLanes * kDecodeLanes;
  float* const output = state.output + static_cast<size_t>(first) * state.v_stride;
  for (r = 0; r < kRows; ++r) {
    float* const row = state.score + r * kDecodeKeys;
    if (state.soft_cap > 0.0f) ModifyScores(row, padded, state.scale, state.soft_cap, 0.0f, 0.0f, 0.0f);
    std::fill(row + count, row + padded, -std::numeric_limits<float>::infinity());
    float* const sum = state.sum + static_cast<size_t>(first + r) * kDecodeLanes;
    SoftmaxRow(row, padded, state.soft_cap > 0.0f ? 1.0f : state.scale, state.v_stride, state.max + first + r, sum,
               output + r * state.v_stride);
    std::memcpy(state.weight + static_cast<size_t>(first + r) * kDecodeLanes, sum, kDecodeLanes * sizeof(float));
  }
  AddDecodedValues<kRows>(state.score, state.value_in_key ? state.key : state.value,
                          state.value_in_key ? state.qk_stride : state.v_stride, count, state.v_stride, output);
}

void FoldPairs(const DecodeState& state, int count, int first, int pairs) {
  for (; pairs >= kDecodeRows; first += kDecodeRows, pairs -= kDecodeRows) FoldRows<kDecodeRows>(state, count, first);
  switch (pairs) {
    case 5:
      return FoldRows<5>(state, count, first);
    case 4:
      return FoldRows<4>(state, count, first);
    case 3:
      return FoldRows<3>(state, count, first);
    case 2:
      return FoldRows<2>(state, count, first);
    case 1:
      return FoldRows<1>(state, count, first);
    default:
      return;
  }
}

void DecodeFold(const DecodeState& state, const DecodeBlock& block, const DecodeBlock& next, int head_pairs,
                std::span<const DecodeRun> runs) {
  FoldHeadByHead(
      block, next, head_pairs, runs,
      [&](const DecodeHeadBlock& rows, const DecodeHeadBlock& following)
          HWY_ATTR { DecodeLoadBlock(state, rows, following); },
      [&](const DecodeHeadBlock& rows, const DecodeHeadBlock& /*following*/, int first, int count)
          HWY_ATTR { FoldPairs(state, rows.count, first, count); });
}

void DecodeAdd(float factor, const float* from, int width, float* to) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const FloatVec f = hn::Set(d, factor);
  for (int i = 0; i < width; i += lanes)
    hn::Store(hn::MulAdd(f, hn::Load(d, from + i), hn::Load(d, to + i)), d, to + i);
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
