// Submits a rank's program to two streams of a GPU and returns at once: compute on the caller's stream, messages on one
// of its own, round by round. What waits is the GPU. Internal to the engine.
#pragma once

#include <string>
#include <vector>

#include "collectives/stream_communicator.h"
#include "partition/plan.h"
#include "runtime/device/cuda/stream.h"
#include "runtime/engine/cuda/step_computer.h"
#include "runtime/engine/stream_schedule.h"

namespace tessera {

class CudaExecutor {
 public:
  // Program and communicator outlive the executor. `rounds` as in MakeStreamSchedule.
  static StatusOr<CudaExecutor> Create(const RankProgram& program, const std::vector<int>& rounds,
                                       const CudaDevice& device, StreamCommunicator& data);

  // Submits every step once, after what `stream` holds and before what it is given later. Slots stay bound until then.
  Status Submit(const SlotTable& slots, const CudaStepComputer& computer, CUstream_st* stream);

  // How far the device is with what was submitted last.
  struct Position {
    bool done = true;
    bool communicates = false;  // it is in a round: it may be waiting for a peer
    StepId step = kNone;        // the first step that is not over
  };
  StatusOr<Position> Where();

  const RankProgram& program() const { return *program_; }
  // The step whose submission began last; that of the error when Submit failed.
  StepId submitting() const { return submitting_; }

 private:
  struct Message {
    int peer;
    int64_t order;  // among the messages between two ranks in one round, the same on both ends
    std::byte* data;
    int64_t bytes;
  };
  struct Round {
    std::vector<Message> sends, receives;
  };

  CudaExecutor(const RankProgram& program, StreamCommunicator& data) : program_(&program), data_(&data) {}
  Status SubmitRound(const StreamAction& action, const SlotTable& slots);
  Status Start(StepId step, const SlotTable& slots, Round& round) const;
  Status Finish(StepId step, const SlotTable& slots) const;

  const RankProgram* program_;
  StreamCommunicator* data_;
  CudaStream messages_;
  std::vector<StreamAction> actions_;
  std::vector<std::string> names_;  // per action, for profilers
  std::vector<CudaEvent> ends_;     // per action
  CudaEvent start_;
  size_t position_ = 0;  // actions before it are over
  StepId submitting_ = kNone;
};

}  // namespace tessera
