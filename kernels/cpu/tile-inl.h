// Matrix products in register tiles: kRowBlock query rows against one packed block of keys and values, or rows of that
// block against query rows.
#if defined(TESSERA_KERNELS_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TESSERA_KERNELS_CPU_TILE_INL_H_
#undef TESSERA_KERNELS_CPU_TILE_INL_H_
#else
#define TESSERA_KERNELS_CPU_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors per row of a register tile: 6 x 4 accumulators fit the 32 registers of AVX-512 and NEON, 6 x 2 the 16 of the
// others.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON
inline constexpr int kTileVectors = 4;
#else
inline constexpr int kTileVectors = 2;
#endif

// sum over i < depth of left[i * left_step + r * left_stride] * right[i * right_stride + vector c], for every r < kRows
// and c < kVectors. Handed to `use(r, c, sum)`.
template <int kRows, int kVectors, class Use>
HWY_INLINE void Multiply(const float* HWY_RESTRICT left, size_t left_step, size_t left_stride,
                         const float* HWY_RESTRICT right, size_t right_stride, int depth, const Use& use) {
  const FloatTag d;
  const size_t lanes = hn::Lanes(d);
  FloatVec sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) sum[r][c] = hn::Zero(d);
  }
  for (int i = 0; i < depth; ++i) {
    FloatVec columns[kVectors];
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) columns[c] = hn::Load(d, right + c * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const FloatVec row = hn::Set(d, left[r * left_stride]);
#pragma GCC unroll 8
      for (int c = 0; c < kVectors; ++c) sum[r][c] = hn::MulAdd(row, columns[c], sum[r][c]);
    }
    left += left_step;
    right += right_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kVectors; ++c) use(r, c, sum[r][c]);
  }
}

// scores[r][j] = query row r . key j, for the first `count` keys rounded up to whole tiles. Element i of query row r is
// query[i * step + r * stride].
HWY_INLINE void Scores(const float* query, size_t step, size_t stride, const float* key, int qk_width, int count,
                       float* scores) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int j = 0; j < count; j += kTileVectors * lanes) {
    Multiply<kRowBlock, kTileVectors>(query, step, stride, key + j, kKeyBlock, qk_width,
                                      [=](int r, int c, FloatVec sum)
                                          HWY_ATTR { hn::Store(sum, d, scores + r * kKeyBlock + j + c * lanes); });
  }
}

// output[r] += sum over i < depth of left[i * left_step + r * left_stride] * right[i], for r < kRows; rows of `right`
// and `output` are `stride` floats. The product is summed apart before it is added, which keeps the rounding error of
// long sequences at that of the number of blocks, not of rows.
template <int kRows>
HWY_INLINE void AddProduct(const float* left, size_t left_step, size_t left_stride, const float* right, int stride,
                           int depth, float* output) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  const auto columns = [=]<int kVectors>(int i) HWY_ATTR {
    Multiply<kRows, kVectors>(left, left_step, left_stride, right + i, stride, depth,
                              [=](int r, int c, FloatVec sum) HWY_ATTR {
                                float* const out = output + r * stride + i + c * lanes;
                                hn::Store(hn::Add(hn::Load(d, out), sum), d, out);
                              });
  };
  int i = 0;
  for (; i + kTileVectors * lanes <= stride; i += kTileVectors * lanes) columns.template operator()<kTileVectors>(i);
  const int rest = (stride - i) / lanes;
  if (rest == 1) columns.template operator()<1>(i);
  if constexpr (kTileVectors > 2) {
    if (rest == 2) columns.template operator()<2>(i);
    if (rest == 3) columns.template operator()<3>(i);
  }
}

// output[r] += sum over j < count of probabilities[r][j] * value j.
HWY_INLINE void AddValues(const float* probabilities, const float* value, int v_stride, int count, float* output) {
  AddProduct<kRowBlock>(probabilities, 1, kKeyBlock, value, v_stride, count, output);
}

// AddProduct for one row that must not touch the rows of `right` that `seen(i)` denies, not even with a factor of zero:
// one of them is NaN or infinite. Same additions in the same order.
template <class Seen>
HWY_INLINE void AddSeenProduct(const float* left, size_t left_step, const Seen& seen, const float* right, int stride,
                               int depth, float* output) {
  const FloatTag d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int c = 0; c < stride; c += lanes) {
    FloatVec sum = hn::Zero(d);
    for (int i = 0; i < depth; ++i) {
      if (!seen(i)) continue;
      sum = hn::MulAdd(hn::Set(d, left[i * left_step]), hn::Load(d, right + i * stride + c), sum);
    }
    hn::Store(hn::Add(hn::Load(d, output + c), sum), d, output + c);
  }
}

// AddValues for one row and the values whose bit is set.
HWY_INLINE void AddSeenValues(const float* probabilities, uint64_t bits, const float* value, int v_stride, int count,
                              float* output) {
  AddSeenProduct(
      probabilities, 1, [=](int j) HWY_ATTR { return (bits >> j & 1) != 0; }, value, v_stride, count, output);
}

}  // namespace tessera::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
