// Attention of a block of query rows over its keys, folded into partials, for any family of tensor cores: keys and
// values arrive in the background, one piece ahead. Online softmax after Dao, FlashAttention-2 (arXiv 2307.08691).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/attend_params.h"
#include "kernels/cuda/device/copy.cuh"
#include "kernels/cuda/device/poison.cuh"
#include "kernels/cuda/device/score.cuh"
#include "kernels/cuda/device/walk.cuh"

namespace tessera::cuda {

// `Math` brings what differs between families: Element, the widths kQk and kV, the sizes kThreads, kRowTiles, kRows and
// kKeys, the layouts QueryTile, KeyTile and ValueTile, and
//
//   Publish(): orders this thread's writes to shared memory before what the tensor cores read;
//   Scores(query tile, key tile, row, lane, s): s = Q K^T for the 16 kRowTiles rows from `row` on;
//   AddValues(value tile, lane, s, output): output += s V.
//
// A warp holds 16 kRowTiles rows in accumulators of m16n8; warps of kTogether rows call these together.
template <typename Math>
class AttendBlock {
  using Element = typename Math::Element;
  using QueryTile = typename Math::QueryTile;
  using KeyTile = typename Math::KeyTile;
  using ValueTile = typename Math::ValueTile;
  static constexpr int kV = Math::kV;
  static constexpr int kThreads = Math::kThreads;
  static constexpr int kTiles = Math::kRowTiles;
  static constexpr int kKeys = Math::kKeys;
  static constexpr int kColumns = kKeys / 4;  // of a row in one lane
  static constexpr uint32_t kKeyBytes = KeyTile::kBytes;
  static constexpr uint32_t kStageBytes = kKeyBytes + ValueTile::kBytes;

 public:
  __device__ __forceinline__ AttendBlock(const AttendParams& params, uint32_t shared)
      : p_(params),
        scoring_(params.score),
        query_tile_(shared),
        stages_(shared + QueryTile::kBytes),
        block_(params.work.blocks[blockIdx.x]),
        head_(static_cast<int>(blockIdx.y)),
        kv_head_((params.score.first_query_head + head_) / params.score.group - params.score.first_kv_head),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_row_(static_cast<int>(threadIdx.x) / 32 * 16 * kTiles) {
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) max_[i / 2][i % 2] = -INFINITY;
  }

  __device__ __forceinline__ void Run() {
    const bool active = warp_row_ / Math::kTogether * Math::kTogether < block_.rows;
    const int end_run = block_.first_run + block_.runs;
    QueryTile::Load(query_tile_, p_.query.data + block_.first_row * p_.query.row_stride + head_ * p_.query.head_stride,
                    p_.query.row_stride, block_.rows, p_.score.qk_width, p_.vector_qk);
    Piece<kKeys> next{block_.first_run, 0};
    LoadStage(next, 0);
    CommitCopies();
    bool more = true, poisoned = false;
    for (int stage = 0; more; stage ^= 1) {
      const Piece<kKeys> now = next;
      more = next.Next(p_.work.runs, end_run);
      WaitForAllCopies();
      Math::Publish();
      __syncthreads();  // the piece is there, and nobody reads the other stage any more
      if (more) {
        LoadStage(next, stage ^ 1);
        CommitCopies();
      }
      if (now.masked(p_.work.runs)) poisoned |= TakeOutNonFinite(ValueStage(stage));
      if (active) Fold(now, stage);
    }
    if (active) Store();
    if (active && poisoned) AddNonFinite();
  }

 private:
  __device__ __forceinline__ uint32_t KeyStage(int stage) const {
    return stages_ + stage * kStageBytes;
  }
  __device__ __forceinline__ uint32_t ValueStage(int stage) const {
    return KeyStage(stage) + kKeyBytes;
  }

  __device__ __forceinline__ void LoadStage(const Piece<kKeys>& piece, int stage) const {
    const int64_t row = piece.first_row(p_.work.runs);
    const int rows = piece.rows(p_.work.runs);
    KeyTile::Load(KeyStage(stage), p_.key.data + row * p_.key.row_stride + kv_head_ * p_.key.head_stride,
                  p_.key.row_stride, rows, p_.score.qk_width, p_.vector_qk);
    ValueTile::Load(ValueStage(stage), p_.value.data + row * p_.value.row_stride + kv_head_ * p_.value.head_stride,
                    p_.value.row_stride, rows, p_.score.v_width, p_.vector_v);
  }

  // Values that are not finite become 0 in the tile; AddNonFinite() adds them in the end to the rows that meet them.
  // Returns whether there were any.
  __device__ __forceinline__ bool TakeOutNonFinite(uint32_t tile) const {
    constexpr int kBytes = ValueTile::kBytes;
    if (__syncthreads_or(AnyNonFinite<Element, kThreads, kBytes>(tile)) == 0) return false;
    ClearNonFinite<Element, kThreads, kBytes>(tile);
    Math::Publish();
    __syncthreads();
    return true;
  }

  __device__ __forceinline__ void Fold(const Piece<kKeys>& piece, int stage) {
    float s[kTiles][kKeys / 8][4] = {};
    Math::Scores(query_tile_, KeyStage(stage), warp_row_, lane_, s);
    const struct Run& run = p_.work.runs[piece.run];
    const int rows = piece.rows(p_.work.runs);
    const int first_column = lane_ % 4 * 2;
    if (scoring_.transforms) Transform(run, piece.offset, s);
    const bool masked = run.bands > 0;
    if (masked || rows < kKeys) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t met =
              masked ? MetColumns<kColumns>(p_.work, run, piece.offset, rows, RowOf(t, half), first_column)
                     : PresentColumns<kColumns>(rows, first_column);
#pragma unroll
          for (int i = 0; i < kColumns; ++i) {
            float& score = s[t][i / 2][half * 2 + i % 2];
            if ((met >> i & 1) == 0) score = -INFINITY;
          }
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) Normalise(s[t], t, half);
    }
    Math::AddValues(ValueStage(stage), lane_, s, output_);
  }

  // Row of the block that lane holds in half 0 or 1 of accumulators of row tile t.
  __device__ __forceinline__ int RowOf(int t, int half) const {
    return warp_row_ + t * 16 + half * 8 + lane_ / 4;
  }

  // In passes that are branched around as a whole: branches per element would keep everything's operands in registers.
  __device__ __forceinline__ void Transform(const struct Run& run, int offset, float (&s)[kTiles][kKeys / 8][4]) const {
    const bool caps = p_.score.soft_cap > 0;
    ForEach(s, [&](float& x, int, int, int) { x *= caps ? p_.score.scale_in_cap : p_.score.scale * kLog2E; });
    if (caps) ForEach(s, [&](float& x, int, int, int) { x = tanhf(x) * (p_.score.soft_cap * kLog2E); });
    if (p_.score.slopes != nullptr) {
      const float slope = p_.score.slopes[head_] * kLog2E;
      const int32_t key_token = run.first_token + (offset + lane_ % 4 * 2) * run.stride;
      ForEach(s, [&](float& x, int t, int half, int i) {
        const int32_t query_token = run.block_token + RowOf(t, half) * run.block_stride;
        x -= slope * Distance(p_.score, query_token, key_token + (i / 2 * 8 + i % 2) * run.stride);
      });
    }
  }

  template <typename Change>
  static __device__ __forceinline__ void ForEach(float (&s)[kTiles][kKeys / 8][4], Change change) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) change(s[t][i / 2][half * 2 + i % 2], t, half, i);
      }
    }
  }

  // Scores become weights relative to the row's new maximum, which everything summed so far is rescaled to.
  __device__ __forceinline__ void Normalise(float (&s)[kKeys / 8][4], int t, int half) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const float before = max_[t][half];
    const float max = fmaxf(before, top * scoring_.factor);
    max_[t][half] = max;
    const float reference = max == -INFINITY ? 0.0f : max;
    const float rescale = Exp2(before - reference);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = s[n][half * 2 + i];
        x = Exp2(fmaf(x, scoring_.factor, -reference));
        sum += x;
      }
    }
    sum_[t][half] = sum_[t][half] * rescale + sum;
#pragma unroll
    for (int n = 0; n < kV / 8; ++n) {
      output_[t][n][half * 2] *= rescale;
      output_[t][n][half * 2 + 1] *= rescale;
    }
  }

  // Merges with the partials that were there.
  __device__ __forceinline__ void Store() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = RowOf(t, half);
        const bool exists = row < block_.rows;
        float* const lse = p_.lse.data + (block_.first_row + row) * p_.lse.row_stride + head_ * p_.lse.head_stride;
        const float before = exists ? *lse : -INFINITY;
        float sum = sum_[t][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const float max = max_[t][half];
        if (!exists || (max == -INFINITY && sum == 0.0f)) continue;  // no such row, or it saw nothing
        const float top = fmaxf(max, before * kLog2E);
        const float new_weight = Exp2(max - top);
        const float old_weight = before == -INFINITY ? 0.0f : Exp2(before * kLog2E - top);
        const float total = sum * new_weight + old_weight;
        const float new_share = new_weight / total, old_share = old_weight / total;
        if (lane_ % 4 == 0) *lse = top * kLn2 + logf(total);
        float* const output =
            p_.output.data + (block_.first_row + row) * p_.output.row_stride + head_ * p_.output.head_stride;
#pragma unroll
        for (int n = 0; n < kV / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int column = n * 8 + lane_ % 4 * 2 + i;
            if (column >= p_.score.v_width) continue;
            float o = output_[t][n][half * 2 + i] * new_share;
            if (old_share != 0.0f) o += output[column] * old_share;
            output[column] = o;
          }
        }
      }
    }
  }

  // Rare and slow: adds the values that TakeOutNonFinite() took out to the stored output. Their weights do not matter,
  // since infinity times a weight is infinity and NaN stays NaN.
  __device__ __forceinline__ void AddNonFinite() const {
    __syncwarp();
    for (int r = block_.first_run; r < block_.first_run + block_.runs; ++r) {
      const struct Run& run = p_.work.runs[r];
      if (run.bands == 0) continue;
      for (int key = 0; key < run.rows; ++key) {
        const uint16_t* const value =
            p_.value.data + int64_t{run.first_row + key} * p_.value.row_stride + kv_head_ * p_.value.head_stride;
        for (int column = lane_; column < p_.score.v_width; column += 32) {
          const float v = Element::ToFloat(value[column]);
          if (fabsf(v) < INFINITY) continue;
          for (int row = warp_row_; row < min(warp_row_ + 16 * kTiles, block_.rows); ++row) {
            if (!Meets(p_.work, run, row, key)) continue;
            p_.output.data[int64_t{block_.first_row + row} * p_.output.row_stride + head_ * p_.output.head_stride +
                           column] += v;
          }
        }
      }
    }
  }

  const AttendParams& p_;
  const Scoring scoring_;
  const uint32_t query_tile_, stages_;
  const RowBlock block_;
  const int head_, kv_head_, lane_, warp_row_;
  float output_[kTiles][kV / 8][4] = {};  // relative to max_
  float max_[kTiles][2];                  // of scores in units of log2
  float sum_[kTiles][2] = {};             // of this lane's columns
};

}  // namespace tessera::cuda
