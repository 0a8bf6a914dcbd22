#include "runtime/engine/transfer.h"

#include <algorithm>

namespace tessera {
namespace {

// Counts and displacements of one side of an exchange, by position in the group.
struct Blocks {
  std::byte* base = nullptr;
  std::vector<int64_t> counts;
  std::vector<int64_t> displacements;
  int64_t bytes = 0;
};

// In place, a peer's block starts at its first region; staged, blocks follow each other.
Blocks LayOut(const std::vector<ExchangePart>& parts, SlotId staging, const std::vector<int>& group, int rank,
              const SlotTable& slots) {
  Blocks blocks;
  blocks.counts.resize(group.size(), 0);
  blocks.displacements.resize(group.size(), 0);
  if (staging != kNone) blocks.base = slots.data(staging);
  for (const ExchangePart& part : parts) {
    if (part.peer == rank) continue;
    const size_t position = std::find(group.begin(), group.end(), part.peer) - group.begin();
    const int64_t bytes = slots.RegionBytes(part.region);
    if (staging == kNone && blocks.base == nullptr) blocks.base = slots.data(part.region.slot);
    if (blocks.counts[position] == 0) {
      blocks.displacements[position] = staging == kNone ? slots.RegionData(part.region) - blocks.base : blocks.bytes;
    }
    blocks.counts[position] += bytes;
    blocks.bytes += bytes;
  }
  return blocks;
}

void CopyOwnParts(const ExchangeStep& step, int rank, const SlotTable& slots) {
  auto receive = step.receives.begin();
  for (const ExchangePart& send : step.sends) {
    if (send.peer != rank) continue;
    receive = std::find_if(receive, step.receives.end(), [&](const ExchangePart& p) { return p.peer == rank; });
    slots.Copy(send.region, receive->region);
    ++receive;
  }
}

}  // namespace

Traffic Communicators::traffic() const {
  Traffic total = world->traffic();
  for (const auto& group : groups) {
    if (group == nullptr) continue;
    const Traffic traffic = group->traffic();
    total.bytes_sent += traffic.bytes_sent;
    total.bytes_received += traffic.bytes_received;
    total.messages_sent += traffic.messages_sent;
    total.messages_received += traffic.messages_received;
  }
  return total;
}

StatusOr<Communicators> Connect(Communicator& world, std::span<const std::vector<int>> groups) {
  Communicators comms;
  comms.world = &world;
  for (const std::vector<int>& group : groups) {
    const auto position = std::find(group.begin(), group.end(), world.rank()) - group.begin();
    TESSERA_ASSIGN_OR_RETURN(auto part, world.Split(group[0], static_cast<int>(position)));
    comms.groups.push_back(std::move(part));
  }
  return comms;
}

Traffic Since(const Traffic& now, const Traffic& before) {
  return {now.bytes_sent - before.bytes_sent, now.bytes_received - before.bytes_received,
          now.messages_sent - before.messages_sent, now.messages_received - before.messages_received};
}

StatusOr<Transfer> Transfer::Start(const StepBody& body, const RankProgram& program, const SlotTable& slots,
                                   Communicators& comms) {
  Transfer transfer;
  transfer.rank_ = program.rank;
  if (const auto* send = std::get_if<SendStep>(&body)) {
    transfer.bytes_ = slots.RegionBytes(send->region);
    TESSERA_ASSIGN_OR_RETURN(transfer.request_,
                             comms.world->Send({slots.RegionData(send->region), static_cast<size_t>(transfer.bytes_)},
                                               send->peer, send->tag));
  } else if (const auto* receive = std::get_if<ReceiveStep>(&body)) {
    transfer.bytes_ = slots.RegionBytes(receive->region);
    TESSERA_ASSIGN_OR_RETURN(transfer.request_, comms.world->Receive({slots.RegionData(receive->region),
                                                                      static_cast<size_t>(transfer.bytes_)},
                                                                     receive->peer, receive->tag));
  } else if (const auto* exchange = std::get_if<ExchangeStep>(&body)) {
    CopyOwnParts(*exchange, program.rank, slots);
    Communicator* comm = comms.groups[exchange->group].get();
    if (comm == nullptr) return transfer;
    const std::vector<int>& group = program.groups[exchange->group];
    const Blocks send = LayOut(exchange->sends, exchange->send_staging, group, program.rank, slots);
    const Blocks receive = LayOut(exchange->receives, exchange->receive_staging, group, program.rank, slots);
    if (exchange->send_staging != kNone) {
      std::byte* packed = send.base;
      for (const ExchangePart& part : exchange->sends) {
        if (part.peer != program.rank) packed += slots.Pack(part.region, packed);
      }
    }
    if (exchange->receive_staging != kNone) transfer.unpack_ = exchange;
    transfer.bytes_ = receive.bytes;
    TESSERA_ASSIGN_OR_RETURN(transfer.request_, comm->AllToAllV(send.base, send.counts, send.displacements,
                                                                receive.base, receive.counts, receive.displacements));
  } else {
    return absl::InternalError(absl::StrFormat("a %s step is no transfer", std::string(KindName(body))));
  }
  return transfer;
}

StatusOr<bool> Transfer::Test(const SlotTable& slots) {
  TESSERA_ASSIGN_OR_RETURN(const bool done, request_.Test());
  if (done && unpack_ != nullptr) {
    const std::byte* packed = slots.data(unpack_->receive_staging);
    for (const ExchangePart& part : unpack_->receives) {
      if (part.peer != rank_) packed += slots.Unpack(part.region, packed);
    }
    unpack_ = nullptr;
  }
  return done;
}

}  // namespace tessera
