#include "tests/dist/collectives/conformance.h"

namespace tessera::testing {
namespace {

std::vector<World> Worlds() {
  std::vector<World> worlds;
  for (const int size : {1, 2, 3, 4, 8}) {
    worlds.push_back(InprocWorld("Eager", size));
    worlds.push_back(InprocWorld("Rendezvous", size, {.eager = false}));
    InprocOptions delayed;
    delayed.longest_delay = std::chrono::microseconds(500);
    delayed.delay_seed = size;
    worlds.push_back(InprocWorld("Delayed", size, delayed));
    delayed.eager = false;
    worlds.push_back(InprocWorld("DelayedRendezvous", size, delayed));
  }
  return worlds;
}

INSTANTIATE_TEST_SUITE_P(Inproc, Conformance, ::testing::ValuesIn(Worlds()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::testing
