// Which contexts one rank has in use. A context is the part of a message's tag that tells communicators apart; those of
// one rank must differ, while disjoint groups may share one.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <mutex>

namespace tessera::internal {

class ContextPool {
 public:
  static constexpr int kCapacity = 512;
  using Mask = std::array<uint64_t, kCapacity / 64>;  // a set bit is a free context

  explicit ContextPool(int64_t contexts) {
    for (int c = 0; c < kCapacity && c < contexts; ++c) free_[c / 64] |= uint64_t{1} << (c % 64);
  }
  Mask free() const {
    const std::lock_guard lock(mutex_);
    return free_;
  }
  void Take(int context) { Set(context, false); }
  void Return(int context) { Set(context, true); }

  // The lowest context that is free in `mask`, -1 when there is none.
  static int Lowest(const Mask& mask) {
    for (size_t word = 0; word < mask.size(); ++word) {
      if (mask[word] != 0) return static_cast<int>(word) * 64 + std::countr_zero(mask[word]);
    }
    return -1;
  }

 private:
  void Set(int context, bool is_free) {
    const std::lock_guard lock(mutex_);
    const uint64_t bit = uint64_t{1} << (context % 64);
    free_[context / 64] = is_free ? free_[context / 64] | bit : free_[context / 64] & ~bit;
  }

  mutable std::mutex mutex_;
  Mask free_{};
};

}  // namespace tessera::internal
