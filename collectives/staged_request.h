// A request made of many messages and of stages that follow each other; the stages run inside Test().
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "collectives/communicator.h"

namespace tessera::internal {

class StagedRequest final : public RequestImpl {
 public:
  // Runs when all messages added so far are done, and may add more.
  using Stage = std::function<Status(StagedRequest&)>;

  // `scratch` is memory of the stages that messages read or write; it outlives them even when the request is dropped.
  explicit StagedRequest(std::vector<Stage> stages, std::shared_ptr<void> scratch = nullptr)
      : scratch_(std::move(scratch)), stages_(std::move(stages)) {}
  ~StagedRequest() override;

  void Add(std::unique_ptr<RequestImpl> message) { pending_.push_back(std::move(message)); }
  // Runs the first stage at once, so that messages leave before the first Test().
  Status Start() { return Advance().status(); }
  StatusOr<bool> Test() override { return Advance(); }

 private:
  StatusOr<bool> Advance();
  Status PollPending();

  std::shared_ptr<void> scratch_;
  std::vector<Stage> stages_;
  size_t next_stage_ = 0;
  std::vector<std::unique_ptr<RequestImpl>> pending_;
  Status error_;
};

}  // namespace tessera::internal
