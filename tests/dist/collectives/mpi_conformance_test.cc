#include "collectives/mpi/communicator.h"
#include "tests/dist/collectives/conformance.h"

namespace tessera::testing {
namespace {

World MpiWorld(const std::string& name, const MpiOptions& options) {
  return {name, [options](const RankProgram& program) -> Status {
            TESSERA_ASSIGN_OR_RETURN(auto comm, MakeMpiWorld(options));
            return program(*comm);
          }};
}

INSTANTIATE_TEST_SUITE_P(Mpi, Conformance,
                         ::testing::Values(MpiWorld("Whole", {}), MpiWorld("Chunked", {.chunk_bytes = 1000})),
                         [](const auto& info) { return info.param.name; });

TEST(MpiWorldTest, RefusesOptions) {
  EXPECT_EQ(MakeMpiWorld({.chunk_bytes = 0}).status().message(), "chunk_bytes is 0, not in [1, 2^31)");
  EXPECT_EQ(MakeMpiWorld({.deadline = std::chrono::milliseconds(0)}).status().message(),
            "the deadline and the heartbeat interval must be positive");
}

}  // namespace
}  // namespace tessera::testing
