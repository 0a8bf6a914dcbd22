// What decoding with bf16 dot products asks memory for while it multiplies.
#pragma once

#include <hwy/targets.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/decode.h"

HWY_PUSH_ATTRIBUTES("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
namespace tessera::cpu::bfloat16 {
namespace {

// Asks for rows in the order in which they will be multiplied, a few lines a step of the products: asked for in bursts,
// they fill the queue of outstanding misses and hold up the products behind them.
//
// Processors fetch ahead by themselves as long as addresses go on in order; what is asked for has to keep that order,
// and leads over the ends of pages and of heads. Measured on a Zen 5 core, of the rate at which it reads and does
// nothing else: 90 % if rows are asked for in order 8 KiB ahead, 70 % if 32 KiB ahead or if not in order, 60 % if only
// into the second-level cache, 35 % if not at all.
class Ahead {
 public:
  // While the `count` rows of `now` are multiplied, which `then_count` rows of `then` follow, all of `bytes`, in
  // `steps` steps. If `once` is true every step meets new rows, and what it asks for is a little before what it meets.
  // Else rows are met time and again, and what is asked for lies behind all of them.
  Ahead(const DecodeRows& now, int count, const DecodeRows& then, int then_count, int bytes, int steps, bool once)
      : now_(now), then_(then), count_(count), bytes_(bytes) {
    constexpr int kDistance = 8192;
    const int distance = once ? std::clamp(kDistance / bytes, 1, count) : count;
    row_ = distance - 1;
    last_ = count + std::min(distance, then_count) - 1;
    gain_ = static_cast<int64_t>(last_ - row_) * ((bytes + kLine - 1) / kLine);
    cost_ = static_cast<int64_t>(kLines) * steps;
  }

  // Called by each step.
  inline void Ask() {
    credit_ += gain_;
    if (credit_ < cost_) return;
    credit_ -= cost_;
    if (line_ >= end_ && !NextRow()) return;
    if (end_ - line_ > (kLines - 1) * kLine) {
#pragma GCC unroll 4
      for (int i = 0; i < kLines; ++i) Ask(line_ + i * kLine);
      line_ += kLines * kLine;
      return;
    }
    for (int i = 0; i < kLines; ++i, line_ += kLine) {
      if (line_ >= end_ && !NextRow()) return;
      Ask(line_);
    }
  }

 private:
  static constexpr int kLine = 64, kLines = 4;

  inline bool NextRow() {
    if (row_ == last_) return false;
    ++row_;
    line_ = row_ < count_ ? now_[row_] : then_[row_ - count_];
    end_ = line_ + bytes_;
    return true;
  }
  // Not _mm_prefetch: GCC 12 takes a function that does nothing else for one without effect, and drops its calls.
  static void Ask(const std::byte* address) {
    asm volatile("prefetcht0 (%0)" ::"r"(address));
  }

  const DecodeRows now_, then_;
  const int count_, bytes_;
  int row_, last_;  // of `now_`, and of `then_` behind it: the one in hand
  int64_t gain_, cost_, credit_ = 0;
  const std::byte* line_ = nullptr;
  const std::byte* end_ = nullptr;
};

}  // namespace
}  // namespace tessera::cpu::bfloat16
HWY_POP_ATTRIBUTES
