#include "collectives/staged_request.h"

#include <mutex>

namespace tessera::internal {
namespace {

// A message that cannot be withdrawn may still write to its buffer after its request was dropped; only the end of the
// process ends that. Happens after errors only.
void KeepForever(std::shared_ptr<void> memory) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::shared_ptr<void>>;
  const std::lock_guard lock(mutex);
  kept->push_back(std::move(memory));
}

}  // namespace

StagedRequest::~StagedRequest() {
  if (!pending_.empty() && scratch_ != nullptr) KeepForever(scratch_);
}

Status StagedRequest::PollPending() {
  for (size_t i = 0; i < pending_.size();) {
    TESSERA_ASSIGN_OR_RETURN(const bool done, pending_[i]->Test());
    if (done) {
      pending_[i] = std::move(pending_.back());
      pending_.pop_back();
    } else {
      ++i;
    }
  }
  return absl::OkStatus();
}

StatusOr<bool> StagedRequest::Advance() {
  while (error_.ok()) {
    error_ = PollPending();
    if (!error_.ok()) break;
    if (!pending_.empty()) return false;
    if (next_stage_ == stages_.size()) return true;
    error_ = stages_[next_stage_++](*this);
  }
  return error_;
}

}  // namespace tessera::internal
