// Where messages to one rank meet the receives it posts. Thread-safe.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "collectives/communicator.h"

namespace tessera::internal {

struct InprocMessage {
  ConstBytes bytes;             // of the sender until taken, or of `copy`
  std::vector<std::byte> copy;  // an eager message that found no receive
  std::chrono::steady_clock::time_point visible_at;
  std::atomic<bool> done = false;  // the sender's buffer is free again
};

struct InprocReceive {
  Bytes buffer;
  Status status;  // valid once done
  std::atomic<bool> done = false;
};

class Mailbox {
 public:
  // Messages and receives of one key meet in the order they came.
  static uint64_t Key(int sender, int64_t tag) { return (static_cast<uint64_t>(sender) << 32) | tag; }

  // An eager message is done on return, another when a receive has taken it.
  void Deliver(uint64_t key, const std::shared_ptr<InprocMessage>& message, bool eager);
  void Post(uint64_t key, const std::shared_ptr<InprocReceive>& receive);
  // Matches what has become visible since.
  void Poll(uint64_t key);

  // Take back what is not done, so that its buffer is never touched again.
  void Withdraw(uint64_t key, const std::shared_ptr<InprocMessage>& message);
  void Withdraw(uint64_t key, const std::shared_ptr<InprocReceive>& receive);

 private:
  struct Lane {
    std::deque<std::shared_ptr<InprocMessage>> messages;
    std::deque<std::shared_ptr<InprocReceive>> receives;
  };
  void Match(uint64_t key);

  std::mutex mutex_;
  std::unordered_map<uint64_t, Lane> lanes_;  // none empty
};

}  // namespace tessera::internal
