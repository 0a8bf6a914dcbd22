// Simulate: a discrete-event simulation of a plan under rendezvous.
#include <algorithm>
#include <functional>
#include <limits>
#include <queue>

#include "partition/cost.h"
#include "partition/cost_shares.h"
#include "partition/price_links.h"
#include "partition/verify_internal.h"

namespace tessera {
namespace {

// Seconds that a compute step of a rank takes, besides the overhead of every step.
using ComputeSeconds = std::function<double(int rank, const StepBody& body)>;

class Simulation {
 public:
  Simulation(const verify::PlanView& plan, const MachineModel& machine, const ComputeSeconds& compute_seconds,
             const verify::StepIndex& index, const verify::Meetings& meetings)
      : plan_(plan),
        machine_(machine),
        compute_seconds_(compute_seconds),
        index_(index),
        meetings_(meetings),
        waiting_(index.size(), 0),
        ready_(index.size(), 0),
        dependents_(index.size()),
        next_exchange_(index.size(), kNone),
        absent_(meetings.size()),
        meeting_ready_(meetings.size(), 0),
        link_free_(plan.programs.size(), 0),
        compute_(plan.programs.size(), 0) {
    for (const RankProgram& program : plan.programs) price_.timeline.emplace_back(program.steps.size());
    for (int m = 0; m < meetings.size(); ++m) absent_[m] = static_cast<int>(meetings.of(m).size());
  }

  Price Run() {
    Connect();
    std::vector<int64_t> first;  // collected before any arrives, because arrivals free others
    for (int64_t step = 0; step < index_.size(); ++step) {
      if (waiting_[step] == 0) first.push_back(step);
    }
    for (const int64_t step : first) Arrive(step);
    int done = 0;
    for (; !queue_.empty(); ++done) {
      const int meeting = queue_.top().second;
      queue_.pop();
      Hold(meeting);
    }
    price_.compute_seconds = compute_.empty() ? 0 : *std::max_element(compute_.begin(), compute_.end());
    if (done < meetings_.size()) price_.seconds = std::numeric_limits<double>::infinity();  // deadlock
    price_.exposed_communication_seconds = price_.seconds - price_.compute_seconds;
    return std::move(price_);
  }

 private:
  // Dependencies, and the order of compute steps and of exchanges within a rank.
  void Connect() {
    for (const RankProgram& program : plan_.programs) {
      int64_t compute = kNone, exchange = kNone;
      for (StepId id = 0; id < static_cast<int>(program.steps.size()); ++id) {
        const int64_t step = index_.of(program.rank, id);
        const auto wait_for = [&](int64_t before) {
          dependents_[before].push_back(step);
          ++waiting_[step];
        };
        for (const StepId after : program.steps[id].after) wait_for(index_.of(program.rank, after));
        if (IsCompute(program.steps[id].body)) {
          if (compute != kNone) wait_for(compute);
          compute = step;
        } else if (std::holds_alternative<ExchangeStep>(program.steps[id].body)) {
          if (exchange != kNone) {
            next_exchange_[exchange] = step;  // starts in order, but does not wait for completion
            ++waiting_[step];
          }
          exchange = step;
        }
      }
    }
  }

  void Release(int64_t step, double now) {
    ready_[step] = std::max(ready_[step], now);
    if (--waiting_[step] == 0) Arrive(step);
  }
  void Arrive(int64_t step) {
    const int meeting = meetings_.of_step[step];
    meeting_ready_[meeting] = std::max(meeting_ready_[meeting], ready_[step]);
    if (--absent_[meeting] == 0) queue_.emplace(meeting_ready_[meeting], meeting);
    if (next_exchange_[step] != kNone) Release(next_exchange_[step], ready_[step]);
  }

  // All participants are there: settles when the meeting takes place and releases what waits for it.
  void Hold(int meeting) {
    const verify::StepRef first = index_.at(meetings_.of(meeting).front());
    const StepBody& body = verify::BodyOf(plan_, first);
    const double ready = meeting_ready_[meeting];
    if (IsCompute(body)) {
      const double seconds = machine_.step_overhead_seconds + compute_seconds_(first.rank, body);
      compute_[first.rank] += seconds;
      return Complete(index_.of(first.rank, first.step), ready, ready + seconds);
    }
    if (const auto* send = std::get_if<SendStep>(&body)) {
      const int64_t bytes = verify::BytesOf(plan_.programs[first.rank], send->region);
      const Link link = LinkBetween(machine_, first.rank, send->peer);
      const double begin = std::max(ready, link_free_[first.rank]);
      const double sent = begin + machine_.step_overhead_seconds + static_cast<double>(bytes) / link.bytes_per_second;
      link_free_[first.rank] = sent;  // latency is on the wire, where the next message may follow
      for (const int64_t step : meetings_.of(meeting)) Complete(step, begin, sent + link.latency_seconds);
      return;
    }
    double begin = ready;
    for (const int64_t step : meetings_.of(meeting)) begin = std::max(begin, link_free_[index_.at(step).rank]);
    for (const int64_t step : meetings_.of(meeting)) {
      const verify::StepRef ref = index_.at(step);
      const auto& exchange = std::get<ExchangeStep>(verify::BodyOf(plan_, ref));
      const double end = begin + machine_.step_overhead_seconds +
                         std::max(PartsSeconds(ref.rank, exchange.sends), PartsSeconds(ref.rank, exchange.receives));
      link_free_[ref.rank] = end;
      Complete(step, begin, end);
    }
  }
  double PartsSeconds(int rank, const std::vector<ExchangePart>& parts) const {
    double seconds = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].peer == rank) continue;
      const Link link = LinkBetween(machine_, rank, parts[i].peer);
      const int64_t bytes = verify::BytesOf(plan_.programs[rank], parts[i].region);
      const bool same_message = i > 0 && parts[i - 1].peer == parts[i].peer;
      seconds += (same_message ? 0 : link.latency_seconds) + static_cast<double>(bytes) / link.bytes_per_second;
    }
    return seconds;
  }
  void Complete(int64_t step, double begin, double end) {
    const verify::StepRef ref = index_.at(step);
    price_.timeline[ref.rank][ref.step] = {begin, end};
    price_.seconds = std::max(price_.seconds, end);
    for (const int64_t dependent : dependents_[step]) Release(dependent, end);
  }

  const verify::PlanView& plan_;
  const MachineModel& machine_;
  const ComputeSeconds& compute_seconds_;
  const verify::StepIndex& index_;
  const verify::Meetings& meetings_;
  std::vector<int> waiting_;  // prerequisites of each step that have not happened
  std::vector<double> ready_;
  std::vector<std::vector<int64_t>> dependents_;
  std::vector<int64_t> next_exchange_;
  std::vector<int> absent_;  // participants of each meeting that have not arrived
  std::vector<double> meeting_ready_;
  std::vector<double> link_free_;        // per rank: when its sending link is idle again
  std::vector<double> compute_;          // per rank
  using Event = std::pair<double, int>;  // time, meeting
  std::priority_queue<Event, std::vector<Event>, std::greater<>> queue_;
  Price price_;
};

Price Impossible(std::span<const RankProgram> programs) {
  Price price;
  price.seconds = std::numeric_limits<double>::infinity();
  for (const RankProgram& program : programs) price.timeline.emplace_back(program.steps.size());
  return price;
}

Price Simulate(const verify::PlanView& plan, const MachineModel& machine, const ComputeSeconds& compute_seconds) {
  if (!verify::CheckStructure(plan).ok()) return Impossible(plan.programs);
  const verify::StepIndex index(plan);
  const auto meetings = verify::MatchMessages(plan, index);
  if (!meetings.ok()) return Impossible(plan.programs);
  return Simulation(plan, machine, compute_seconds, index, *meetings).Run();
}

}  // namespace

Price Simulate(const Plan& plan, const MachineModel& machine) {
  if (!verify::CheckSpec(plan.spec).ok()) return Impossible(plan.programs);
  const BandIndex mask(plan.spec.problem.mask);
  return Simulate(verify::PlanView(plan), machine, [&](int, const StepBody& body) {
    return PairsOf(mask, body) * FlopsPerPair(plan.spec) / machine.flops_per_second;
  });
}

Price Simulate(const DecodePlan& plan, const MachineModel& machine, std::span<const double> attend_seconds) {
  if (!Validate(plan.spec).ok() || attend_seconds.size() != plan.programs.size()) return Impossible(plan.programs);
  return Simulate(verify::PlanView(plan), machine, [&](int rank, const StepBody& body) {
    return std::holds_alternative<AttendCacheStep>(body) ? attend_seconds[rank] : 0.0;
  });
}

}  // namespace tessera
