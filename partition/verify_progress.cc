// Stage 3 of Verify(): no deadlock under rendezvous.
#include "partition/verify_internal.h"

namespace tessera::verify {
namespace {

// What must happen before a step starts, besides its dependencies: the previous compute step must be complete, or the
// previous exchange must have started.
struct ProgramOrder {
  std::vector<int64_t> previous_compute;
  std::vector<int64_t> previous_exchange;
};
ProgramOrder ProgramOrderOf(const PlanView& plan, const StepIndex& index) {
  ProgramOrder order{std::vector<int64_t>(index.size(), kNone), std::vector<int64_t>(index.size(), kNone)};
  for (const RankProgram& program : plan.programs) {
    int64_t compute = kNone, exchange = kNone;
    for (StepId step = 0; step < static_cast<int>(program.steps.size()); ++step) {
      const int64_t i = index.of(program.rank, step);
      const StepBody& body = program.steps[step].body;
      if (IsCompute(body)) {
        order.previous_compute[i] = std::exchange(compute, i);
      } else if (std::holds_alternative<ExchangeStep>(body)) {
        order.previous_exchange[i] = std::exchange(exchange, i);
      }
    }
  }
  return order;
}

// Nodes [0, steps) are starts of steps, nodes [steps, steps + meetings) completions of meetings.
class EventGraph {
 public:
  EventGraph(const PlanView& plan, const StepIndex& index, const Meetings& meetings)
      : plan_(plan), index_(index), meetings_(meetings), order_(ProgramOrderOf(plan, index)) {}

  StatusOr<std::vector<int>> Order() {
    const int64_t steps = index_.size(), nodes = steps + meetings_.size();
    std::vector<int64_t> first(nodes + 1, 0);  // of each node's dependents
    waiting_.assign(nodes, 0);
    for (int64_t node = 0; node < nodes; ++node) {
      ForEachPrerequisite(node, [&](int64_t before) {
        ++first[before + 1];
        ++waiting_[node];
      });
    }
    for (int64_t node = 0; node < nodes; ++node) first[node + 1] += first[node];
    std::vector<int64_t> dependents(first.back()), fill(first.begin(), first.end() - 1);
    for (int64_t node = 0; node < nodes; ++node) {
      ForEachPrerequisite(node, [&](int64_t before) { dependents[fill[before]++] = node; });
    }

    std::vector<int64_t> queue;
    std::vector<int> completed;
    for (int64_t node = 0; node < nodes; ++node) {
      if (waiting_[node] == 0) queue.push_back(node);
    }
    for (size_t head = 0; head < queue.size(); ++head) {
      const int64_t node = queue[head];
      if (node >= steps) completed.push_back(static_cast<int>(node - steps));
      for (int64_t i = first[node]; i < first[node + 1]; ++i) {
        if (--waiting_[dependents[i]] == 0) queue.push_back(dependents[i]);
      }
    }
    if (static_cast<int64_t>(queue.size()) < nodes) return Deadlock();
    return completed;
  }

 private:
  int64_t CompletionOf(int64_t step) const { return index_.size() + meetings_.of_step[step]; }

  template <typename Visit>
  void ForEachPrerequisite(int64_t node, Visit visit) const {
    if (node >= index_.size()) {
      for (const int64_t step : meetings_.of(static_cast<int>(node - index_.size()))) visit(step);
      return;
    }
    const StepRef ref = index_.at(node);
    for (const StepId after : plan_.programs[ref.rank].steps[ref.step].after) {
      visit(CompletionOf(index_.of(ref.rank, after)));
    }
    if (order_.previous_compute[node] != kNone) visit(CompletionOf(order_.previous_compute[node]));
    if (order_.previous_exchange[node] != kNone) visit(order_.previous_exchange[node]);
  }

  // Follows what stuck steps wait for until one repeats, and prints the cycle.
  Status Deadlock() const {
    int64_t node = 0;
    while (waiting_[node] == 0) ++node;
    std::vector<bool> seen(waiting_.size(), false);
    const auto blocker = [&](int64_t stuck) {
      int64_t found = kNone;
      ForEachPrerequisite(stuck, [&](int64_t before) {
        if (found == kNone && waiting_[before] > 0) found = before;
      });
      return found;
    };
    for (; !seen[node]; node = blocker(node)) seen[node] = true;
    std::vector<std::string> cycle;
    int64_t at = node;
    do {
      if (at < index_.size()) cycle.push_back(Where(plan_, index_.at(at)));
      at = blocker(at);
    } while (at != node);
    constexpr size_t kShown = 8;
    std::string text = cycle.front();
    for (size_t i = 1; i < std::min(cycle.size(), kShown); ++i) text += absl::StrCat(" waits for ", cycle[i]);
    text += cycle.size() > kShown ? " waits for ..." : absl::StrCat(" waits for ", cycle.front());
    return absl::InvalidArgumentError(absl::StrCat("progress: deadlock: ", text));
  }

  const PlanView& plan_;
  const StepIndex& index_;
  const Meetings& meetings_;
  ProgramOrder order_;
  std::vector<int64_t> waiting_;  // prerequisites of each node that have not happened
};

}  // namespace

StatusOr<std::vector<int>> OrderMeetings(const PlanView& plan, const StepIndex& index, const Meetings& meetings) {
  return EventGraph(plan, index, meetings).Order();
}

}  // namespace tessera::verify
