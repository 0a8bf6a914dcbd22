#include "partition/cost.h"

#include <algorithm>
#include <map>

#include "partition/cost_band_index.h"
#include "partition/cost_shares.h"

namespace tessera {
namespace {

// Adds up what the steps of one rank do.
class Counter {
 public:
  explicit Counter(const RankProgram& program) : program_(program) {}

  RankCost Count() {
    cost_.slot_bytes = program_.SlotBytes();
    for (const Step& step : program_.steps) std::visit([this](const auto& body) { Add(body); }, step.body);
    return cost_;
  }
  RankCost Count(const PlanSpec& spec, const BandIndex& mask) {
    Count();
    for (const Step& step : program_.steps) cost_.pairs += PairsOf(mask, step.body);
    cost_.flops = cost_.pairs * FlopsPerPair(spec);
    return cost_;
  }

 private:
  int64_t BytesOf(const Region& region) const {
    const Slot& slot = program_.slots[region.slot];
    return region.rows.size() * region.heads.size() * slot.width * slot.element_bytes;
  }
  void Add(const SendStep& send) {
    cost_.bytes_sent += BytesOf(send.region);
    ++cost_.messages_sent;
  }
  void Add(const ReceiveStep& receive) {
    cost_.bytes_received += BytesOf(receive.region);
    ++cost_.messages_received;
  }
  void Add(const ExchangeStep& exchange) {
    AddParts(exchange.sends, cost_.bytes_sent, cost_.messages_sent);
    AddParts(exchange.receives, cost_.bytes_received, cost_.messages_received);
  }
  void AddParts(const std::vector<ExchangePart>& parts, int64_t& bytes, int64_t& messages) const {
    std::map<int, int64_t> by_peer;
    for (const ExchangePart& part : parts) {
      if (part.peer != program_.rank) by_peer[part.peer] += BytesOf(part.region);
    }
    for (const auto& [peer, peer_bytes] : by_peer) {
      bytes += peer_bytes;
      messages += peer_bytes > 0;
    }
  }
  // Compute steps move no bytes between ranks; PairsOf counts their attention, and other arithmetic is not attention's.
  template <typename Compute>
  void Add(const Compute&) {}

  const RankProgram& program_;
  RankCost cost_;
};

// Combines two costs field by field.
template <typename Combine>
RankCost Combined(const RankCost& a, const RankCost& b, Combine combine) {
  return {combine(a.bytes_sent, b.bytes_sent),
          combine(a.bytes_received, b.bytes_received),
          combine(a.messages_sent, b.messages_sent),
          combine(a.messages_received, b.messages_received),
          combine(a.flops, b.flops),
          combine(a.pairs, b.pairs),
          combine(a.slot_bytes, b.slot_bytes)};
}

}  // namespace

RankCost CountProgram(const PlanSpec& spec, const RankProgram& program) {
  return Counter(program).Count(spec, BandIndex(spec.problem.mask));
}

RankCost PlanCost::Max() const {
  RankCost max;
  for (const RankCost& rank : ranks) max = Combined(max, rank, [](auto a, auto b) { return std::max(a, b); });
  return max;
}

RankCost PlanCost::Total() const {
  RankCost total;
  for (const RankCost& rank : ranks) total = Combined(total, rank, [](auto a, auto b) { return a + b; });
  return total;
}

PlanCost CountPlan(const Plan& plan) {
  const BandIndex mask(plan.spec.problem.mask);
  PlanCost cost;
  for (const RankProgram& program : plan.programs) cost.ranks.push_back(Counter(program).Count(plan.spec, mask));
  return cost;
}

PlanCost CountPlan(const DecodePlan& plan) {
  PlanCost cost;
  for (const RankProgram& program : plan.programs) cost.ranks.push_back(Counter(program).Count());
  return cost;
}

}  // namespace tessera
