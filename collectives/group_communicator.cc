#include "collectives/group_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "collectives/arguments.h"
#include "collectives/context_pool.h"
#include "collectives/staged_request.h"

namespace tessera::internal {
namespace {

// A tag on the wire: context, one bit for collectives, then the caller's tag or the number of the collective.
constexpr int64_t kTagsPerContext = int64_t{2} * kTagLimit;

struct SplitEntry {
  SplitChoice choice;
  ContextPool::Mask free_contexts;
};

}  // namespace

GroupCommunicator::GroupCommunicator(std::shared_ptr<Transport> transport, std::shared_ptr<ContextPool> contexts,
                                     std::vector<int> members, int rank, int context)
    : transport_(std::move(transport)),
      contexts_(std::move(contexts)),
      members_(std::move(members)),
      rank_(rank),
      context_(context) {
  contexts_->Take(context_);
}

GroupCommunicator::~GroupCommunicator() {
  contexts_->Return(context_);
}

StatusOr<std::unique_ptr<Communicator>> GroupCommunicator::MakeWorld(std::shared_ptr<Transport> transport) {
  if (transport->tag_limit() < kTagsPerContext) {
    return absl::FailedPreconditionError(absl::StrCat("messages need tags up to ", kTagsPerContext - 1,
                                                      ", but this transport ends at ", transport->tag_limit() - 1));
  }
  auto contexts = std::make_shared<ContextPool>(transport->tag_limit() / kTagsPerContext);
  std::vector<int> members(transport->size());
  for (int r = 0; r < transport->size(); ++r) members[r] = r;
  const int rank = transport->rank();
  return std::unique_ptr<Communicator>(
      new GroupCommunicator(std::move(transport), std::move(contexts), std::move(members), rank, 0));
}

int64_t GroupCommunicator::WireTag(bool collective, int64_t tag) const {
  return context_ * kTagsPerContext + (collective ? kTagLimit : 0) + tag;
}

int64_t GroupCommunicator::NextCollectiveTag() {
  return WireTag(true, collectives_started_++ % kTagLimit);
}

Status GroupCommunicator::CheckMessage(int peer, int tag) const {
  TESSERA_RETURN_IF_ERROR(CheckPeer(peer, size()));
  if (tag < 0 || tag >= kTagLimit) {
    return absl::InvalidArgumentError(absl::StrCat("tag ", tag, " is not in [0, ", kTagLimit, ")"));
  }
  return absl::OkStatus();
}

StatusOr<Request> GroupCommunicator::Send(ConstBytes data, int peer, int tag) {
  TESSERA_RETURN_IF_ERROR(CheckMessage(peer, tag));
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  TESSERA_ASSIGN_OR_RETURN(auto message, transport_->Send(data, members_[peer], WireTag(false, tag)));
  if (peer != rank_) {
    traffic_.bytes_sent += static_cast<int64_t>(data.size());
    ++traffic_.messages_sent;
  }
  return Request(std::move(message));
}

StatusOr<Request> GroupCommunicator::Receive(Bytes data, int peer, int tag) {
  TESSERA_RETURN_IF_ERROR(CheckMessage(peer, tag));
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  TESSERA_ASSIGN_OR_RETURN(auto message, transport_->Receive(data, members_[peer], WireTag(false, tag)));
  if (peer != rank_) {
    traffic_.bytes_received += static_cast<int64_t>(data.size());
    ++traffic_.messages_received;
  }
  return Request(std::move(message));
}

void GroupCommunicator::CountBlocks(std::span<const Block> blocks) {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    traffic_.bytes_sent += blocks[peer].send_bytes;
    traffic_.bytes_received += blocks[peer].receive_bytes;
    traffic_.messages_sent += blocks[peer].send_bytes > 0;
    traffic_.messages_received += blocks[peer].receive_bytes > 0;
  }
}

Status GroupCommunicator::PostBlocks(StagedRequest& request, std::span<const Block> blocks, int64_t tag) {
  const Block& own = blocks[rank_];
  if (transport_->MovesData() && own.receive_bytes > 0 && own.receive != own.send) {
    std::memmove(own.receive, own.send, own.receive_bytes);
  }
  // Starting at the next rank spreads the load: no rank is everybody's first.
  for (int i = 1; i < size(); ++i) {
    const int peer = (rank_ + size() - i) % size();
    if (blocks[peer].receive_bytes == 0) continue;
    const Bytes bytes(blocks[peer].receive, blocks[peer].receive_bytes);
    TESSERA_ASSIGN_OR_RETURN(auto message, transport_->Receive(bytes, members_[peer], tag));
    request.Add(std::move(message));
  }
  for (int i = 1; i < size(); ++i) {
    const int peer = (rank_ + i) % size();
    if (blocks[peer].send_bytes == 0) continue;
    const ConstBytes bytes(blocks[peer].send, blocks[peer].send_bytes);
    TESSERA_ASSIGN_OR_RETURN(auto message, transport_->Send(bytes, members_[peer], tag));
    request.Add(std::move(message));
  }
  return absl::OkStatus();
}

StatusOr<Request> GroupCommunicator::StartExchange(std::vector<Block> blocks) {
  auto request = std::make_unique<StagedRequest>(std::vector<StagedRequest::Stage>{});
  TESSERA_RETURN_IF_ERROR(PostBlocks(*request, blocks, NextCollectiveTag()));
  return Request(std::move(request));
}

StatusOr<Request> GroupCommunicator::StartGather(const std::byte* send, int64_t bytes, std::byte* receive) {
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) blocks[r] = {send, bytes, receive + r * bytes, bytes};
  return StartExchange(std::move(blocks));
}

StatusOr<std::vector<SplitChoice>> GroupCommunicator::ExchangeChoices(SplitChoice mine, int* context) {
  SplitEntry entry{mine, contexts_->free()};
  if (!transport_->MovesData()) {
    *context = ContextPool::Lowest(entry.free_contexts);
    TESSERA_ASSIGN_OR_RETURN(std::vector<SplitChoice> choices, transport_->PredictSplit(members_));
    if (choices[rank_].color != mine.color || choices[rank_].key != mine.key) {
      return absl::InvalidArgumentError(absl::StrCat("the split rule expects colour ", choices[rank_].color,
                                                     " and key ", choices[rank_].key, " of rank ", rank_, ", not ",
                                                     mine.color, " and ", mine.key));
    }
    return choices;
  }
  std::vector<SplitEntry> entries(size());
  TESSERA_ASSIGN_OR_RETURN(Request request, StartGather(reinterpret_cast<const std::byte*>(&entry), sizeof(SplitEntry),
                                                        reinterpret_cast<std::byte*>(entries.data())));
  TESSERA_RETURN_IF_ERROR(Wait(*this, request, "the colours of a split"));
  std::vector<SplitChoice> choices;
  for (const SplitEntry& other : entries) {
    choices.push_back(other.choice);
    for (size_t i = 0; i < entry.free_contexts.size(); ++i) entry.free_contexts[i] &= other.free_contexts[i];
  }
  *context = ContextPool::Lowest(entry.free_contexts);
  return choices;
}

StatusOr<std::unique_ptr<Communicator>> GroupCommunicator::Split(int color, int key) {
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  int context = -1;
  TESSERA_ASSIGN_OR_RETURN(const std::vector<SplitChoice> choices, ExchangeChoices({color, key}, &context));
  if (context < 0) {
    return absl::ResourceExhaustedError(
        "too many communicators are alive: the tags of this transport cannot tell another one apart");
  }
  if (color < 0) return std::unique_ptr<Communicator>();
  std::vector<int> group;  // ranks here
  for (int r = 0; r < size(); ++r) {
    if (choices[r].color == color) group.push_back(r);
  }
  std::stable_sort(group.begin(), group.end(), [&](int a, int b) { return choices[a].key < choices[b].key; });
  const int new_rank = static_cast<int>(std::find(group.begin(), group.end(), rank_) - group.begin());
  for (int& member : group) member = members_[member];
  return std::unique_ptr<Communicator>(
      new GroupCommunicator(transport_, contexts_, std::move(group), new_rank, context));
}

}  // namespace tessera::internal
