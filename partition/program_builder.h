// Builds one rank's program; dependencies follow from what each step reads and writes.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "partition/plan.h"

namespace tessera {

// Messages between two ranks are numbered per channel, so that inputs going out and partial results coming back need no
// common order.
enum class Channel : int { kInput = 0, kPartial = 1 };

class ProgramBuilder {
 public:
  explicit ProgramBuilder(int rank) { program_.rank = rank; }

  SlotId AddSlot(const Slot& slot);
  int AddGroup(std::vector<int> world_ranks);
  // Adds a step after every earlier step it conflicts with: a read waits for the last writes of the rows, a write also
  // for the reads since. Point-to-point tags are numbered per peer and channel: both ends must emit the messages of a
  // pair of ranks and a channel in the same order.
  StepId Send(int peer, const Region& region, Channel channel = Channel::kInput);
  StepId Receive(int peer, const Region& region, Channel channel = Channel::kInput);
  StepId Add(StepBody body);

  const Slot& slot(SlotId id) const { return program_.slots[id]; }
  int64_t rows(SlotId id) const { return program_.slots[id].rows; }
  RankProgram Take() { return std::move(program_); }

 private:
  struct Access {
    StepId step;
    Range rows;
    bool write;
  };
  void Touch(SlotId slot, Range rows, bool write, std::vector<StepId>& after);
  void Touch(const Region& region, bool write, std::vector<StepId>& after) {
    Touch(region.slot, region.rows, write, after);
  }

  RankProgram program_;
  std::vector<std::vector<Access>> accesses_;               // per slot, those a later step may still conflict with
  std::map<std::pair<int, Channel>, int> sent_, received_;  // messages so far, per peer and channel
};

}  // namespace tessera
