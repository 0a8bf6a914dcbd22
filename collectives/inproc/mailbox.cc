#include "collectives/inproc/mailbox.h"

#include <algorithm>
#include <cstring>

namespace tessera::internal {
namespace {

void Copy(const InprocMessage& message, InprocReceive& receive) {
  if (message.bytes.size() != receive.buffer.size()) {
    receive.status = absl::InvalidArgumentError(
        absl::StrCat("a message of ", message.bytes.size(), " bytes met a receive of ", receive.buffer.size()));
  } else if (!message.bytes.empty()) {
    std::memcpy(receive.buffer.data(), message.bytes.data(), message.bytes.size());
  }
}

}  // namespace

void Mailbox::Match(uint64_t key) {
  const auto found = lanes_.find(key);
  if (found == lanes_.end()) return;
  Lane& lane = found->second;
  while (!lane.messages.empty() && !lane.receives.empty()) {
    InprocMessage& message = *lane.messages.front();
    // The clock is read only where a fault delays messages.
    if (message.visible_at.time_since_epoch().count() != 0 && message.visible_at > std::chrono::steady_clock::now()) {
      return;
    }
    InprocReceive& receive = *lane.receives.front();
    Copy(message, receive);
    message.done.store(true, std::memory_order_release);
    receive.done.store(true, std::memory_order_release);
    lane.messages.pop_front();
    lane.receives.pop_front();
  }
  if (lane.messages.empty() && lane.receives.empty()) lanes_.erase(found);
}

void Mailbox::Deliver(uint64_t key, const std::shared_ptr<InprocMessage>& message, bool eager) {
  const std::lock_guard lock(mutex_);
  lanes_[key].messages.push_back(message);
  Match(key);
  if (eager && !message->done.load(std::memory_order_relaxed)) {
    message->copy.assign(message->bytes.begin(), message->bytes.end());
    message->bytes = message->copy;
    message->done.store(true, std::memory_order_release);
  }
}

void Mailbox::Post(uint64_t key, const std::shared_ptr<InprocReceive>& receive) {
  const std::lock_guard lock(mutex_);
  lanes_[key].receives.push_back(receive);
  Match(key);
}

void Mailbox::Poll(uint64_t key) {
  const std::lock_guard lock(mutex_);
  Match(key);
}

void Mailbox::Withdraw(uint64_t key, const std::shared_ptr<InprocMessage>& message) {
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find(key);
  if (found == lanes_.end()) return;
  std::erase(found->second.messages, message);
  if (found->second.messages.empty() && found->second.receives.empty()) lanes_.erase(found);
}

void Mailbox::Withdraw(uint64_t key, const std::shared_ptr<InprocReceive>& receive) {
  const std::lock_guard lock(mutex_);
  const auto found = lanes_.find(key);
  if (found == lanes_.end()) return;
  std::erase(found->second.receives, receive);
  if (found->second.messages.empty() && found->second.receives.empty()) lanes_.erase(found);
}

}  // namespace tessera::internal
