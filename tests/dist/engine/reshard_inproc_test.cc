// Caches handed over between threads as ranks, and what happens when it cannot be.
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "runtime/engine/reshard.h"
#include "tests/support/problems.h"
#include "tests/support/ranks.h"
#include "tests/support/reshard_run.h"

namespace tessera {
namespace {

TEST(CacheReshard, DestinationsEqualCachesBuiltDirectly) {
  const int cases = testing::Problems(150);
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (int n = 0; n < cases; ++n) {
      const std::string name = absl::StrCat("reshard/inproc/", ranks, "/", n);
      const InprocOptions options{.eager = n % 2 == 0};
      const Status status =
          RunRanks(ranks, options, [&](Communicator& comm) { return testing::RunReshard(comm, name); });
      ASSERT_TRUE(status.ok()) << name << ": " << status;
    }
  }
}

constexpr CacheRowShape kShape{true, 1, 12, 8, DType::kBFloat16};

// Replicated on ranks 0 and 1, handed to slices on ranks 1 and 2; rank 3 watches.
ReshardSpec Slices(std::vector<int64_t> tokens) {
  return {
      kShape, std::move(tokens), {{0, 1}, {CacheAxis::kReplicated, 2}, {}}, {{1, 2}, {CacheAxis::kLatent, 2, 2}, {}}};
}

struct Caches {
  Caches(int rank, const ReshardSpec& spec, int64_t destination_pages)
      : source(PagedCache::Create({kShape, 1, 4, 20}).value()),
        destination(
            PagedCache::Create({spec.to.sharding.LocalShape(rank == 2, kShape), 1, 4, destination_pages}).value()) {
    for (int64_t tokens : spec.tokens) {
      ids.push_back(source.Start());
      const CacheGrowth growth{ids.back(), tokens};
      static_cast<void>(source.Append({&growth, 1}));
      for (int64_t row = 0; row < tokens; ++row) std::memset(source.Key(0, ids.back(), row), 1, kShape.bytes());
    }
    const CacheGrowth growth{older = destination.Start(), 6};
    static_cast<void>(destination.Append({&growth, 1}));
  }
  PagedCache source, destination;
  std::vector<SequenceId> ids;
  SequenceId older = 0;  // in the destination before the hand-over
};

TEST(CacheReshard, OutOfPagesOnOneRankFailsAllAndLosesNothing) {
  const Status status = RunRanks(4, {}, [](Communicator& comm) -> Status {
    const int rank = comm.rank();
    const ReshardSpec spec = Slices({10, 9});
    Caches caches(rank, spec, rank == 2 ? 7 : 30);
    const int64_t free = caches.destination.free_pages();
    const auto reshard = CacheReshard::Create(comm, spec, rank == 3 ? nullptr : &caches.destination, {});
    EXPECT_EQ(reshard.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(reshard.status().message(), "rank 2, reshard: cache: appending needs 6 pages and 5 of 7 are free");
    EXPECT_EQ(caches.destination.free_pages(), free);
    EXPECT_EQ(caches.destination.rows(caches.older), 6);
    // With fewer tokens it fits, over the same communicator.
    const ReshardSpec shorter = Slices({10, 8});
    auto again = CacheReshard::Create(comm, shorter, rank == 3 ? nullptr : &caches.destination, {});
    if (!again.ok()) return again.status();
    return (*again)->Move({0, 1}, {&caches.source, caches.ids, {}});
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CacheReshard, DisagreementAndWrongSourcesAreErrorsEverywhereAndRecoverable) {
  const Status status = RunRanks(4, {}, [](Communicator& comm) -> Status {
    const int rank = comm.rank();
    const ReshardSpec spec = Slices({10, 9});
    Caches caches(rank, spec, 30);
    PagedCache* destination = rank == 1 || rank == 2 ? &caches.destination : nullptr;
    EXPECT_EQ(CacheReshard::Create(comm, rank == 1 ? Slices({10, 8}) : spec, destination, {}).status().code(),
              absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(CacheReshard::Create(comm, spec, destination, {.layers = 2}).status().message(),
              "rank 1, reshard: the destination cache has 1 layers of 1 heads, key width 8, value width 4, bf16, "
              "latent; this rank's part is 2 layers of 1 heads, key width 8, value width 4, bf16, latent");
    EXPECT_EQ(CacheReshard::Create(comm, spec, nullptr, {}).status().message(),
              "rank 1, reshard: this rank shall hold the cache and has no destination");
    TESSERA_ASSIGN_OR_RETURN(auto reshard, CacheReshard::Create(comm, spec, destination, {}));
    ReshardSource source{&caches.source, caches.ids, {}};
    const auto text = [&](Range layers, const ReshardSource& from) {
      return std::string(reshard->Move(layers, from).message());
    };
    EXPECT_EQ(text({0, 2}, source), "layers [0, 2) are to move; there are 1");
    std::vector<SequenceId> wrong = caches.ids;
    if (rank == 1) wrong[1] = 99;
    EXPECT_EQ(text({0, 1}, {&caches.source, wrong, {}}), "rank 1, reshard: the source has no sequence 99");
    wrong = caches.ids;
    if (rank == 1) std::swap(wrong[0], wrong[1]);
    EXPECT_EQ(text({0, 1}, {&caches.source, wrong, {}}),
              "rank 1, reshard: source sequence 2 has 9 rows; 10 are to move");
    EXPECT_EQ(text({0, 1}, rank == 0 ? ReshardSource{} : source),
              "rank 0, reshard: the source has 0 dense tensors and no cache; 1 layers of 2 sequences are to move");
    EXPECT_EQ(reshard->Move({0, rank == 3 ? 0 : 1}, source).code(), absl::StatusCode::kFailedPrecondition);
    TESSERA_RETURN_IF_ERROR(reshard->Move({0, 1}, source));
    if (destination != nullptr) {
      const SequenceId id = reshard->TakeSequences()[1];
      for (int64_t row = 0; row < 9; ++row) EXPECT_EQ(destination->Key(0, id, row)[15], std::byte{1});
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(CacheReshard, ADyingRankIsAnErrorAndItsPeersKeepTheirSequences) {
  std::array<std::string, 4> seen;
  const InprocOptions options{
      .deadline = std::chrono::milliseconds(5000), .eager = false, .faults = {{InprocFault::Kind::kKill, 0, 4}}};
  const Status status = RunRanks(4, options, [&](Communicator& comm) -> Status {
    const ReshardSpec spec = Slices({80});
    Caches caches(comm.rank(), spec, 30);
    const int64_t free = caches.destination.free_pages();
    Status moved;
    {
      auto reshard = CacheReshard::Create(comm, spec, &caches.destination, {.layers = 1, .staging_bytes = 0});
      moved = reshard.ok() ? (*reshard)->Move({0, 1}, {&caches.source, caches.ids, {}}) : reshard.status();
      if (reshard.ok() && !moved.ok()) {
        EXPECT_EQ((*reshard)->Move({0, 1}, {}), moved) << "a broken world stays so";
      }
    }
    seen[comm.rank()] = std::string(moved.message());
    EXPECT_EQ(caches.destination.free_pages(), free);
    EXPECT_EQ(caches.destination.rows(caches.older), 6);
    return moved;
  });
  EXPECT_FALSE(status.ok());
  EXPECT_NE(seen[2].find("rank 0"), std::string::npos) << seen[2];
}

}  // namespace
}  // namespace tessera
