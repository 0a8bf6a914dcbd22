// The same random hand-overs over mpirun: this process is one rank.
#include <gtest/gtest.h>

#include "collectives/mpi/communicator.h"
#include "tests/support/problems.h"
#include "tests/support/reshard_run.h"

namespace tessera {
namespace {

TEST(CacheReshardMpi, DestinationsEqualCachesBuiltDirectly) {
  const auto world = MakeMpiWorld();
  ASSERT_TRUE(world.ok()) << world.status();
  const int cases = testing::Problems(60);
  for (int n = 0; n < cases; ++n) {
    const std::string name = absl::StrCat("reshard/mpi/", (*world)->size(), "/", n);
    const Status status = testing::RunReshard(**world, name);
    ASSERT_TRUE(status.ok()) << name << ": " << status;
  }
}

}  // namespace
}  // namespace tessera
