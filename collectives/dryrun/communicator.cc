#include "collectives/dryrun/communicator.h"

#include <utility>

#include "collectives/group_communicator.h"
#include "collectives/transport.h"

namespace tessera {
namespace internal {
namespace {

class Completed final : public RequestImpl {
 public:
  StatusOr<bool> Test() override { return true; }
};

class DryRunTransport final : public Transport {
 public:
  DryRunTransport(int rank, int size, DryRunSplitRule rule) : rank_(rank), size_(size), rule_(std::move(rule)) {}

  std::string_view name() const override { return "dryrun"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int64_t tag_limit() const override { return int64_t{1} << 31; }
  StatusOr<std::unique_ptr<RequestImpl>> Send(ConstBytes, int, int64_t) override {
    return std::make_unique<Completed>();
  }
  StatusOr<std::unique_ptr<RequestImpl>> Receive(Bytes, int, int64_t) override { return std::make_unique<Completed>(); }

  bool MovesData() const override { return false; }
  StatusOr<std::vector<SplitChoice>> PredictSplit(std::span<const int> members) override {
    if (!rule_) return absl::FailedPreconditionError("a dry run needs a split rule to know the colours of the others");
    std::vector<SplitChoice> choices;
    for (const int member : members) {
      const DryRunSplit split = rule_(member, splits_);
      choices.push_back({split.color, split.key});
    }
    ++splits_;
    return choices;
  }

  void ReportProgress(RankProgress progress) override { progress_ = progress; }
  RankProgress progress() const override { return progress_; }
  Status Health() const override { return absl::OkStatus(); }
  std::chrono::milliseconds deadline() const override { return std::chrono::milliseconds::max(); }

 private:
  const int rank_;
  const int size_;
  const DryRunSplitRule rule_;
  int splits_ = 0;
  RankProgress progress_;
};

}  // namespace
}  // namespace internal

StatusOr<std::unique_ptr<Communicator>> MakeDryRunCommunicator(int rank, int size, DryRunSplitRule rule) {
  if (rank < 0 || rank >= size) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " is not a rank of a world of ", size));
  }
  return internal::GroupCommunicator::MakeWorld(
      std::make_shared<internal::DryRunTransport>(rank, size, std::move(rule)));
}

StatusOr<std::vector<std::unique_ptr<Communicator>>> MakeDryRunWorld(int size, const DryRunSplitRule& rule) {
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int r = 0; r < size; ++r) {
    TESSERA_ASSIGN_OR_RETURN(auto communicator, MakeDryRunCommunicator(r, size, rule));
    communicators.push_back(std::move(communicator));
  }
  return communicators;
}

}  // namespace tessera
