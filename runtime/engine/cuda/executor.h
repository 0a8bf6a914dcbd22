// Submits a rank's program to two streams of a GPU and returns at once: compute on the caller's stream, messages on one
// of its own, round by round. What waits is the GPU. Internal to the engine.
#pragma once

#include <memory>
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

  // What tells how far the device is with one submission.
  struct Marks {
    CudaEvent start;              // what the stream held before is over
    std::vector<CudaEvent> ends;  // per action
    CudaEvent finish;             // the caller's, of what it submits after the program
    size_t position = 0;          // actions before it are over
  };
  // Those of the last Submit. Several submissions may be under way; marks are used again when they are given back.
  std::unique_ptr<Marks> TakeMarks() { return std::move(current_); }
  void GiveBack(std::unique_ptr<Marks> marks) { free_.push_back(std::move(marks)); }

  struct Position {
    bool done = true;
    bool waits = false;   // maybe for a peer: it has not begun, or is in a round
    StepId step = kNone;  // the first step that is not over
    friend bool operator==(const Position&, const Position&) = default;
  };
  StatusOr<Position> Where(Marks& marks) const;

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

  CudaExecutor(const RankProgram& program, const CudaDevice& device, StreamCommunicator& data)
      : program_(&program), device_(device), data_(&data) {}
  StatusOr<std::unique_ptr<Marks>> FreeMarks();
  Status SubmitRound(const StreamAction& action, const SlotTable& slots);
  Status Start(StepId step, const SlotTable& slots, Round& round) const;
  Status Finish(StepId step, const SlotTable& slots) const;

  const RankProgram* program_;
  CudaDevice device_;
  StreamCommunicator* data_;
  CudaStream messages_;
  std::vector<StreamAction> actions_;
  std::vector<std::string> names_;  // per action, for profilers
  std::unique_ptr<Marks> current_;
  std::vector<std::unique_ptr<Marks>> free_;
  StepId submitting_ = kNone;
};

}  // namespace tessera
