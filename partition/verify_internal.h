// The stages of Verify(). Each trusts what the earlier ones proved and nothing else. Private to partition; the
// simulator shares the matching of messages.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "partition/cost_band_index.h"
#include "partition/decode.h"
#include "partition/plan.h"
#include "runtime/base/status.h"

namespace tessera::verify {

// A plan of any kind as verification and simulation see it: its programs, and what its spec demands of them. Refers to
// the plan it is made of.
struct PlanView {
  explicit PlanView(const Plan& plan);
  explicit PlanView(const DecodePlan& plan);

  // What one of the caller's tensors must be, and the tokens of its rows.
  struct External {
    Slot slot;
    std::vector<Segment> tokens;
  };
  enum class Kind : uint8_t { kForward, kBackward, kDecode };

  Kind kind = Kind::kForward;
  std::span<const RankProgram> programs;
  Problem problem;  // of a decode plan: query tokens are rows of the step, key tokens are parts of the cache
  int ranks = 0;
  SlotId externals = 0;  // the caller's tensors: the first slots
  SlotId inputs = 0;     // those of them that no step may change: the first ones
  std::function<External(int rank, SlotId slot)> external;
};

struct StepRef {
  int rank = 0;
  StepId step = 0;
};

// Numbers the steps of all ranks consecutively.
class StepIndex {
 public:
  explicit StepIndex(const PlanView& plan);
  int64_t size() const { return static_cast<int64_t>(refs_.size()); }
  int64_t of(int rank, StepId step) const { return first_[rank] + step; }
  StepRef at(int64_t index) const { return refs_[index]; }

 private:
  std::vector<int64_t> first_;
  std::vector<StepRef> refs_;
};

// Steps that complete together under rendezvous: a send with its receive, all steps of one exchange, a compute step
// alone.
struct Meetings {
  std::vector<int> of_step;           // meeting of every step, by StepIndex
  std::vector<int64_t> participants;  // steps, grouped by meeting; a send comes before its receive
  std::vector<int64_t> first;         // meeting m holds participants [first[m], first[m + 1])
  int size() const { return static_cast<int>(first.size()) - 1; }
  std::span<const int64_t> of(int meeting) const {
    return std::span(participants).subspan(first[meeting], first[meeting + 1] - first[meeting]);
  }
};

// A movement of one region's content between, or within, ranks.
struct Transfer {
  StepRef source;
  Region source_region;
  StepRef destination;
  Region destination_region;
};

// "rank 1 step 4 (receive)".
std::string Where(const PlanView& plan, StepRef ref);
std::string Where(const RankProgram& program, StepId step);
std::string Text(Range range);
std::string Text(HeadRange heads);
std::string Text(const Segment& segment);

inline const StepBody& BodyOf(const PlanView& plan, StepRef ref) {
  return plan.programs[ref.rank].steps[ref.step].body;
}
int64_t BytesOf(const RankProgram& program, const Region& region);
// Whether the rows are those of keys and the heads key/value heads.
bool IsOnKeySide(SlotContent content);
// Key/value heads that query heads `heads` read.
HeadRange KeyHeadsOf(const Problem& problem, HeadRange heads);

// The part of the cache that a rank of a decode plan holds: where tokens are sharded its own, otherwise the only one.
inline int64_t CachePartOf(const PlanView& plan, int rank) {
  return plan.problem.key_tokens > 1 ? rank : 0;
}

// What an element of a slot must be.
int WidthOf(const Problem& problem, SlotContent content);
int ElementBytesOf(const Problem& problem, SlotContent content);

Status CheckSpec(const PlanSpec& spec);  // what a PlanView takes for granted
Status CheckStructure(const PlanView& plan);
Status CheckProgram(const PlanView& plan,
                    const RankProgram& program);  // the part of CheckStructure that concerns one rank
StatusOr<Meetings> MatchMessages(const PlanView& plan, const StepIndex& index);
// What moves in a meeting that MatchMessages made, in packing order; empty for compute steps.
std::vector<Transfer> TransfersOf(const PlanView& plan, const StepIndex& index, const Meetings& meetings, int meeting);
// An order in which all meetings can complete, or the cycle that prevents it.
StatusOr<std::vector<int>> OrderMeetings(const PlanView& plan, const StepIndex& index, const Meetings& meetings);
Status CheckLifetimes(const PlanView& plan);

// What some rows of an output are made of: for query rows the keys they met, for key rows the queries, one segment per
// tile that reached them.
struct Contribution {
  Segment others;
  StepRef step;
  HeadRange heads;  // query heads
};
struct FinishedRows {
  int rank = 0;  // owner
  SlotContent output = SlotContent::kResult;
  HeadRange heads;  // of the output
  Segment tokens;
  int bag = 0;
};
// Contributions as a binary tree of unions, so that copies of partials share them.
class Contributions {
 public:
  static constexpr int kEmpty = 0;
  Contributions();
  int Add(const Contribution& contribution);
  int Union(int a, int b);  // equal arguments give equal results
  int64_t size(int bag) const { return nodes_[bag].size; }
  int64_t leaves() const { return static_cast<int64_t>(leaves_.size()); }
  std::vector<Contribution> Flatten(int bag) const;

 private:
  struct Node {
    int left = kLeaf;
    int right = 0;  // of a leaf: its contribution
    int64_t size = 0;
  };
  static constexpr int kLeaf = -1;
  std::vector<Node> nodes_;
  std::vector<Contribution> leaves_;
  std::unordered_map<uint64_t, int> unions_;  // packed arguments to node
};
struct Outcome {
  Contributions contributions;
  std::vector<FinishedRows> rows;
};
// Executes the plan symbolically in `order` and returns what every owner's result is made of.
StatusOr<Outcome> ExecuteSymbolically(const PlanView& plan, const StepIndex& index, const Meetings& meetings,
                                      std::span<const int> order);
Status CheckCoverage(const PlanView& plan, const Outcome& outcome);
Status CheckTilesUnmasked(const PlanView& plan, const BandIndex& mask);

}  // namespace tessera::verify
