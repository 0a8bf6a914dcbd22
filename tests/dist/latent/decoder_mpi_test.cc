// Latent decoding over mpirun: this process is one rank and holds the same hidden states as all others.
#include <gtest/gtest.h>

#include "collectives/inproc/world.h"
#include "collectives/mpi/communicator.h"
#include "tests/dist/latent/latent_case.h"
#include "tests/support/problems.h"

namespace tessera::latent_test {
namespace {

TEST(MpiLatentDecoder, EveryMethodMatchesFp64WithAndWithoutAPrefill) {
  const auto world = MakeMpiWorld();
  ASSERT_TRUE(world.ok()) << world.status();
  Communicator& comm = **world;
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (const char* strategy : {"", "zigzag"}) {
      const std::string name = absl::StrCat("latent/mpi/", std::string(Name(method)), "/", comm.size(), "/", strategy);
      auto generator = testing::GeneratorFor(name);
      const LatentCase problem = *strategy == 0 ? RandomLatentCase(method, comm.size(), generator)
                                                : RandomPrefilledCase(method, comm.size(), strategy, generator);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      std::vector<float> output, plain;
      ASSERT_EQ(RunLatentRank(comm, problem, problem.options, output), absl::OkStatus());
      const MlaDecoderOptions one = OneRank(problem.options);
      ASSERT_EQ(RunRanks(1, {}, [&](Communicator& alone) { return RunLatentRank(alone, problem, one, plain); }),
                absl::OkStatus());
      const auto exact = ExactSteps(problem, problem.options), whole = ExactSteps(problem, one);
      ASSERT_TRUE(exact.ok() && whole.ok()) << exact.status() << whole.status();
      EXPECT_EQ(Compare(ErrorsOf(output, *exact), ErrorsOf(plain, *whole), problem.options), "");
    }
  }
}

}  // namespace
}  // namespace tessera::latent_test
