// The collectives of GroupCommunicator.
#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "collectives/arguments.h"
#include "collectives/group_communicator.h"
#include "collectives/staged_request.h"

namespace tessera::internal {
namespace {

// Dry runs pass null buffers.
template <typename Byte>
Byte* At(Byte* base, int64_t offset) {
  return base == nullptr ? nullptr : base + offset;
}

// receive[i] = pieces[0][i] + pieces[1][i] + ... from the left. Blocks on the stack let `receive` be one of the pieces.
void SumInOrder(std::span<const float* const> pieces, std::span<float> receive) {
  constexpr size_t kBlock = 1024;
  std::array<float, kBlock> sum;
  for (size_t begin = 0; begin < receive.size(); begin += kBlock) {
    const size_t count = std::min(kBlock, receive.size() - begin);
    std::copy_n(pieces[0] + begin, count, sum.begin());
    for (const float* piece : pieces.subspan(1)) {
      for (size_t i = 0; i < count; ++i) sum[i] += piece[begin + i];
    }
    std::copy_n(sum.begin(), count, receive.begin() + begin);
  }
}

}  // namespace

// Every rank's summands of this rank's elements, and where the sum goes.
struct GroupCommunicator::Reduction {
  std::span<const float> send;
  std::span<float> receive;     // this rank's elements
  std::vector<int64_t> begins;  // of each rank's elements in `send`, and the end
  std::vector<float> scratch;   // [P-1, own count], the peers' summands

  int64_t count(int r) const { return begins[r + 1] - begins[r]; }
  // Where the summands of rank r are, seen from rank `own`.
  int64_t ScratchBegin(int r, int own) const { return (r < own ? r : r - 1) * count(own); }
  void Sum(int own) const {
    std::vector<const float*> pieces;
    for (int r = 0; r + 1 < static_cast<int>(begins.size()); ++r) {
      pieces.push_back(r == own ? send.data() + begins[own] : scratch.data() + ScratchBegin(r, own));
    }
    SumInOrder(pieces, receive);
  }
};

StatusOr<Request> GroupCommunicator::AllGatherV(ConstBytes send, std::byte* receive, std::span<const int64_t> counts,
                                                std::span<const int64_t> displacements) {
  TESSERA_RETURN_IF_ERROR(CheckCounts("counts", counts, size()));
  TESSERA_RETURN_IF_ERROR(CheckCounts("displacements", displacements, size()));
  TESSERA_RETURN_IF_ERROR(CheckLength("send", static_cast<int64_t>(send.size()), counts[rank_]));
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) {
    blocks[r] = {send.data(), counts[rank_], At(receive, displacements[r]), counts[r]};
  }
  CountBlocks(blocks);
  return StartExchange(std::move(blocks));
}

StatusOr<Request> GroupCommunicator::AllToAllV(const std::byte* send, std::span<const int64_t> send_counts,
                                               std::span<const int64_t> send_displacements, std::byte* receive,
                                               std::span<const int64_t> receive_counts,
                                               std::span<const int64_t> receive_displacements) {
  TESSERA_RETURN_IF_ERROR(CheckCounts("send_counts", send_counts, size()));
  TESSERA_RETURN_IF_ERROR(CheckCounts("send_displacements", send_displacements, size()));
  TESSERA_RETURN_IF_ERROR(CheckCounts("receive_counts", receive_counts, size()));
  TESSERA_RETURN_IF_ERROR(CheckCounts("receive_displacements", receive_displacements, size()));
  TESSERA_RETURN_IF_ERROR(CheckLength("the block to itself", send_counts[rank_], receive_counts[rank_]));
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) {
    blocks[r] = {At(send, send_displacements[r]), send_counts[r], At(receive, receive_displacements[r]),
                 receive_counts[r]};
  }
  CountBlocks(blocks);
  return StartExchange(std::move(blocks));
}

std::vector<GroupCommunicator::Block> GroupCommunicator::ReductionBlocks(const Reduction& reduction) const {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(float));
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) {
    if (r == rank_) continue;
    // The scratch belongs to this object even though only the messages write to it.
    auto* const summands = const_cast<float*>(reduction.scratch.data());
    blocks[r] = {
        reinterpret_cast<const std::byte*>(At(reduction.send.data(), reduction.begins[r])), reduction.count(r) * kBytes,
        reinterpret_cast<std::byte*>(At(summands, reduction.ScratchBegin(r, rank_))), reduction.count(rank_) * kBytes};
  }
  return blocks;
}

StatusOr<Request> GroupCommunicator::ReduceScatterSum(std::span<const float> send, std::span<float> receive,
                                                      std::span<const int64_t> counts) {
  TESSERA_RETURN_IF_ERROR(CheckCounts("counts", counts, size()));
  const auto reduction = std::make_shared<Reduction>(Reduction{send, receive, std::vector<int64_t>(size() + 1), {}});
  std::partial_sum(counts.begin(), counts.end(), reduction->begins.begin() + 1);
  TESSERA_RETURN_IF_ERROR(CheckLength("send", static_cast<int64_t>(send.size()), reduction->begins.back()));
  TESSERA_RETURN_IF_ERROR(CheckLength("receive", static_cast<int64_t>(receive.size()), counts[rank_]));
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  if (transport_->MovesData()) reduction->scratch.resize((size() - 1) * counts[rank_]);
  const std::vector<Block> blocks = ReductionBlocks(*reduction);
  CountBlocks(blocks);

  std::vector<StagedRequest::Stage> stages;
  stages.push_back([this, blocks, tag = NextCollectiveTag()](StagedRequest& r) { return PostBlocks(r, blocks, tag); });
  if (transport_->MovesData()) {
    stages.push_back([reduction, rank = rank_](StagedRequest&) {
      reduction->Sum(rank);
      return absl::OkStatus();
    });
  }
  auto request = std::make_unique<StagedRequest>(std::move(stages), reduction);
  TESSERA_RETURN_IF_ERROR(request->Start());
  return Request(std::move(request));
}

StatusOr<Request> GroupCommunicator::AllReduceSum(std::span<const float> send, std::span<float> receive) {
  const auto elements = static_cast<int64_t>(send.size());
  TESSERA_RETURN_IF_ERROR(CheckLength("receive", static_cast<int64_t>(receive.size()), elements));
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  const auto reduction = std::make_shared<Reduction>(Reduction{send, {}, std::vector<int64_t>(size() + 1), {}});
  for (int r = 0; r < size(); ++r) {
    reduction->begins[r + 1] = reduction->begins[r] + elements / size() + (r < elements % size());
  }
  reduction->receive = receive.subspan(reduction->begins[rank_], reduction->count(rank_));
  if (transport_->MovesData()) reduction->scratch.resize((size() - 1) * reduction->count(rank_));
  const std::vector<Block> scatter = ReductionBlocks(*reduction);
  std::vector<Block> gather(size());
  for (int r = 0; r < size(); ++r) {
    const auto block_of = [&](int owner) {
      return reinterpret_cast<std::byte*>(At(receive.data(), reduction->begins[owner]));
    };
    gather[r] = {block_of(rank_), reduction->count(rank_) * 4, block_of(r), reduction->count(r) * 4};
  }
  CountBlocks(scatter);
  CountBlocks(gather);

  // The sum may overwrite `send`: by then all of it has left.
  std::vector<StagedRequest::Stage> stages;
  stages.push_back(
      [this, scatter, tag = NextCollectiveTag()](StagedRequest& r) { return PostBlocks(r, scatter, tag); });
  stages.push_back([this, reduction, gather, tag = NextCollectiveTag()](StagedRequest& r) {
    if (transport_->MovesData()) reduction->Sum(rank_);
    return PostBlocks(r, gather, tag);
  });
  auto request = std::make_unique<StagedRequest>(std::move(stages), reduction);
  TESSERA_RETURN_IF_ERROR(request->Start());
  return Request(std::move(request));
}

StatusOr<Request> GroupCommunicator::Broadcast(Bytes data, int root) {
  TESSERA_RETURN_IF_ERROR(CheckMessage(root, 0));
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  const auto bytes = static_cast<int64_t>(data.size());
  std::vector<Block> blocks(size());
  for (int r = 0; r < size(); ++r) {
    if (r == rank_) continue;
    if (rank_ == root) blocks[r] = {data.data(), bytes, nullptr, 0};
    if (r == root) blocks[r] = {nullptr, 0, data.data(), bytes};
  }
  CountBlocks(blocks);
  return StartExchange(std::move(blocks));
}

StatusOr<Request> GroupCommunicator::Barrier() {
  TESSERA_RETURN_IF_ERROR(transport_->BeginOperation());
  // Dissemination: after the round at distance 2^k each rank has heard from the 2^(k+1) - 1 ranks before it.
  std::vector<StagedRequest::Stage> stages;
  for (int distance = 1; distance < size(); distance *= 2) {
    const int to = members_[(rank_ + distance) % size()];
    const int from = members_[(rank_ + size() - distance) % size()];
    stages.push_back([this, to, from, tag = NextCollectiveTag()](StagedRequest& request) -> Status {
      TESSERA_ASSIGN_OR_RETURN(auto receive, transport_->Receive({}, from, tag));
      request.Add(std::move(receive));
      TESSERA_ASSIGN_OR_RETURN(auto send, transport_->Send({}, to, tag));
      request.Add(std::move(send));
      return absl::OkStatus();
    });
  }
  auto request = std::make_unique<StagedRequest>(std::move(stages));
  TESSERA_RETURN_IF_ERROR(request->Start());
  return Request(std::move(request));
}

}  // namespace tessera::internal
