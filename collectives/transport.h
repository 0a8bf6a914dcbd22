// What a backend supplies: ordered, matched messages between the ranks of one world, and the health of that world.
// GroupCommunicator builds everything else on it, so collectives, their order of summation and their traffic are the
// same for every backend.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "collectives/communicator.h"

namespace tessera::internal {

// The arguments of one rank's Split.
struct SplitChoice {
  int color = 0;
  int key = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual std::string_view name() const = 0;
  virtual int rank() const = 0;  // in the world, as every rank below
  virtual int size() const = 0;
  // Tags that a message may carry lie in [0, tag_limit()).
  virtual int64_t tag_limit() const = 0;

  // Called once before every public operation; an error refuses the operation.
  virtual Status BeginOperation() { return absl::OkStatus(); }
  // Nonblocking; messages of one (sender, receiver, tag) are matched in order. Any length, a rank may send to itself.
  virtual StatusOr<std::unique_ptr<RequestImpl>> Send(ConstBytes data, int peer, int64_t tag) = 0;
  virtual StatusOr<std::unique_ptr<RequestImpl>> Receive(Bytes data, int peer, int64_t tag) = 0;

  // False when messages are only counted: buffers are then never touched and may be null.
  virtual bool MovesData() const { return true; }
  // The choices of `members` in the Split that this rank is in; asked for only when messages carry nothing.
  virtual StatusOr<std::vector<SplitChoice>> PredictSplit(std::span<const int> /*members*/) {
    return absl::UnimplementedError("this transport exchanges the colours of a split");
  }

  virtual void ReportProgress(RankProgress progress) = 0;
  virtual RankProgress progress() const = 0;
  virtual Status Health() const = 0;
  virtual std::chrono::milliseconds deadline() const = 0;
};

}  // namespace tessera::internal
