// The communicator of a group of ranks over a transport. Its collectives are direct exchanges between every pair of
// ranks, so their traffic is the payload itself:
//
//   all-gather        sent: own count * (P-1)                    received: the other counts
//   all-to-all        sent: counts to others                     received: counts from others
//   reduce-scatter    sent: 4 * (n - own count)                  received: 4 * own count * (P-1)
//   all-reduce        a reduce-scatter of n / P elements each (the first n % P ranks one more), then their all-gather
//   broadcast         root sent: n * (P-1)                       others received: n
//   barrier           nothing
#pragma once

#include <memory>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/transport.h"

namespace tessera::internal {

class ContextPool;
class StagedRequest;

class GroupCommunicator final : public Communicator {
 public:
  // The communicator of all ranks of `transport`.
  static StatusOr<std::unique_ptr<Communicator>> MakeWorld(std::shared_ptr<Transport> transport);
  ~GroupCommunicator() override;

  std::string_view name() const override { return transport_->name(); }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }

  StatusOr<Request> Send(ConstBytes data, int peer, int tag) override;
  StatusOr<Request> Receive(Bytes data, int peer, int tag) override;
  StatusOr<Request> AllGatherV(ConstBytes send, std::byte* receive, std::span<const int64_t> counts,
                               std::span<const int64_t> displacements) override;
  StatusOr<Request> AllToAllV(const std::byte* send, std::span<const int64_t> send_counts,
                              std::span<const int64_t> send_displacements, std::byte* receive,
                              std::span<const int64_t> receive_counts,
                              std::span<const int64_t> receive_displacements) override;
  StatusOr<Request> ReduceScatterSum(std::span<const float> send, std::span<float> receive,
                                     std::span<const int64_t> counts) override;
  StatusOr<Request> AllReduceSum(std::span<const float> send, std::span<float> receive) override;
  StatusOr<Request> Broadcast(Bytes data, int root) override;
  StatusOr<Request> Barrier() override;
  StatusOr<std::unique_ptr<Communicator>> Split(int color, int key) override;

  void ReportProgress(RankProgress progress) override { transport_->ReportProgress(progress); }
  RankProgress progress() const override { return transport_->progress(); }
  Status Health() const override { return transport_->Health(); }
  std::chrono::milliseconds deadline() const override { return transport_->deadline(); }
  Traffic traffic() const override { return traffic_; }
  void ResetTraffic() override { traffic_ = {}; }

 private:
  // A block exchanged with one peer; addresses are meaningless when bytes is 0.
  struct Block {
    const std::byte* send = nullptr;
    int64_t send_bytes = 0;
    std::byte* receive = nullptr;
    int64_t receive_bytes = 0;
  };
  struct Reduction;

  GroupCommunicator(std::shared_ptr<Transport> transport, std::shared_ptr<ContextPool> contexts,
                    std::vector<int> members, int rank, int context);

  Status CheckMessage(int peer, int tag) const;
  int64_t WireTag(bool collective, int64_t tag) const;
  int64_t NextCollectiveTag();
  // Posts receives, then sends, for every non-empty block of a peer; copies this rank's own block.
  Status PostBlocks(StagedRequest& request, std::span<const Block> blocks, int64_t tag);
  void CountBlocks(std::span<const Block> blocks);
  StatusOr<Request> StartExchange(std::vector<Block> blocks);
  std::vector<Block> ReductionBlocks(const Reduction& reduction) const;
  StatusOr<Request> StartGather(const std::byte* send, int64_t bytes, std::byte* receive);
  StatusOr<std::vector<SplitChoice>> ExchangeChoices(SplitChoice mine, int* context);

  const std::shared_ptr<Transport> transport_;
  const std::shared_ptr<ContextPool> contexts_;
  const std::vector<int> members_;  // world ranks
  const int rank_;
  const int context_;
  int64_t collectives_started_ = 0;
  Traffic traffic_;
};

}  // namespace tessera::internal
