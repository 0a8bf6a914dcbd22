// The planners of decoding. Sharding heads or latent columns needs no messages. Sharding tokens does: queries may have
// to be gathered, and what every rank computes from its part of the cache is a partial result that has to be merged.
#include <optional>

#include "partition/decode.h"
#include "partition/head_exchange.h"
#include "partition/program_builder.h"

namespace tessera {
namespace {

int LowestBit(int x) {
  return x & -x;
}

struct PartialPair {
  SlotId output = kNone;
  SlotId lse = kNone;
};

class DecodePlanner {
 public:
  DecodePlanner(const DecodeSpec& spec, int rank) : spec_(spec), rank_(rank), builder_(rank) {
    const HeadRange queries = spec.QueryHeads(rank), outputs = spec.OutputHeads(rank);
    builder_.AddSlot({SlotContent::kQuery, true, spec.rows, queries, spec.qk_width, element_bytes()});
    builder_.AddSlot({SlotContent::kPartialOutput, true, spec.rows, outputs, spec.v_width, 4});
    builder_.AddSlot({SlotContent::kPartialLse, true, spec.rows, outputs, 1, 4});
  }

  RankProgram Plan() {
    // The group exists whatever the rows, so that its communicator can be made once.
    if (exchanges() && spec_.ranks > 1) {
      std::vector<int> all(spec_.ranks);
      for (int r = 0; r < spec_.ranks; ++r) all[r] = r;
      group_ = builder_.AddGroup(std::move(all));
    }
    if (spec_.rows == 0) return builder_.Take();
    if (spec_.axis() != CacheAxis::kSequence || spec_.ranks == 1) {
      Attend(kDecodeQuerySlot, {kDecodeOutputSlot, kDecodeLseSlot});
    } else if (spec_.method == DecodeMethod::kTree) {
      ReduceAndBroadcast();
    } else {
      const SlotId query = spec_.method == DecodeMethod::kGatherQuery ? GatherQueries() : kDecodeQuerySlot;
      const PartialPair partial = AddPartials(spec_.rows, {0, spec_.heads});
      Attend(query, partial);
      MergeAtOwners(partial);
    }
    return builder_.Take();
  }

 private:
  bool exchanges() const {
    return spec_.method == DecodeMethod::kGatherQuery || spec_.method == DecodeMethod::kReplicatedQuery;
  }
  int element_bytes() const { return static_cast<int>(SizeInBytes(spec_.dtype)); }
  Range rows() const { return {0, spec_.rows}; }

  PartialPair AddPartials(int64_t rows, HeadRange heads) {
    const SlotId output = builder_.AddSlot({SlotContent::kPartialOutput, false, rows, heads, spec_.v_width, 4});
    return {output, builder_.AddSlot({SlotContent::kPartialLse, false, rows, heads, 1, 4})};
  }

  // A rank without heads has nothing to attend.
  void Attend(SlotId query, PartialPair partial) {
    const HeadRange heads = builder_.slot(query).heads;
    if (!heads.empty()) builder_.Add(AttendCacheStep{query, partial.output, partial.lse, heads});
  }

  SlotId GatherQueries() {
    const SlotId all =
        builder_.AddSlot({SlotContent::kQuery, false, spec_.rows, {0, spec_.heads}, spec_.qk_width, element_bytes()});
    std::vector<ExchangePart> sends, receives;
    const HeadRange own = spec_.QueryHeads(rank_);
    for (int peer = 0; peer < spec_.ranks; ++peer) {
      const HeadRange theirs = spec_.QueryHeads(peer);
      if (!own.empty()) sends.push_back({peer, {kDecodeQuerySlot, rows(), own}});
      if (!theirs.empty()) receives.push_back({peer, {all, rows(), theirs}});
    }
    EmitExchange(group_, rank_, std::move(sends), std::move(receives), builder_);
    return all;
  }

  // Every owner gets its heads' partials of all ranks and merges them in the order of the ranks, so that the result
  // does not depend on who owns a head. Rank 0's go where the result will be, the others' to one slot, one below the
  // other.
  void MergeAtOwners(PartialPair partial) {
    const HeadRange own = spec_.OutputHeads(rank_);
    PartialPair arriving;
    if (!own.empty()) arriving = AddPartials(spec_.rows * (spec_.ranks - 1), own);
    std::vector<ExchangePart> sends, receives;
    MergeStep merge{arriving.output, arriving.lse, kDecodeOutputSlot, kDecodeLseSlot, {}};
    for (int peer = 0; peer < spec_.ranks; ++peer) {
      const HeadRange theirs = spec_.OutputHeads(peer);
      if (!theirs.empty()) {
        for (const SlotId slot : {partial.output, partial.lse}) sends.push_back({peer, {slot, rows(), theirs}});
      }
      if (own.empty()) continue;
      const PartialPair target = peer == 0 ? PartialPair{kDecodeOutputSlot, kDecodeLseSlot} : arriving;
      const int64_t first = peer == 0 ? 0 : (peer - 1) * spec_.rows;
      for (const SlotId slot : {target.output, target.lse}) {
        receives.push_back({peer, {slot, {first, first + spec_.rows}, own}});
      }
      if (peer > 0) merge.rows.push_back({first, 0, spec_.rows});
    }
    EmitExchange(group_, rank_, std::move(sends), std::move(receives), builder_);
    if (!own.empty()) builder_.Add(std::move(merge));
  }

  // A binomial tree: the parent of x clears its lowest set bit. Partials are merged in the caller's tensors on the way
  // up, and replaced there by the result on its way down.
  void ReduceAndBroadcast() {
    const PartialPair working{kDecodeOutputSlot, kDecodeLseSlot};
    const HeadRange heads{0, spec_.heads};
    const auto send = [&](int peer, PartialPair from, Channel channel) {
      for (const SlotId slot : {from.output, from.lse}) builder_.Send(peer, {slot, rows(), heads}, channel);
    };
    const auto receive = [&](int peer, PartialPair to, Channel channel) {
      for (const SlotId slot : {to.output, to.lse}) builder_.Receive(peer, {slot, rows(), heads}, channel);
    };
    Attend(kDecodeQuerySlot, working);
    std::vector<int> children;  // smallest subtree first: it is ready first
    const int limit = rank_ == 0 ? spec_.ranks : LowestBit(rank_);
    for (int bit = 1; bit < limit && rank_ + bit < spec_.ranks; bit *= 2) children.push_back(rank_ + bit);
    for (const int child : children) {
      const PartialPair arriving = AddPartials(spec_.rows, heads);
      receive(child, arriving, Channel::kPartial);
      builder_.Add(MergeStep{arriving.output, arriving.lse, working.output, working.lse, {{0, 0, spec_.rows}}});
    }
    if (rank_ != 0) {
      const int parent = rank_ - LowestBit(rank_);
      send(parent, working, Channel::kPartial);
      receive(parent, working, Channel::kInput);
    }
    // Largest subtree first: it has the longest way to go.
    for (auto child = children.rbegin(); child != children.rend(); ++child) send(*child, working, Channel::kInput);
  }

  const DecodeSpec& spec_;
  const int rank_;
  ProgramBuilder builder_;
  int group_ = kNone;
};

}  // namespace

RankProgram BuildDecodeProgram(const DecodeSpec& spec, int rank) {
  return DecodePlanner(spec, rank).Plan();
}

DecodePlan BuildDecodePlan(const DecodeSpec& spec) {
  DecodePlan plan{spec, {}};
  for (int rank = 0; rank < spec.ranks; ++rank) plan.programs.push_back(BuildDecodeProgram(spec, rank));
  return plan;
}

}  // namespace tessera
