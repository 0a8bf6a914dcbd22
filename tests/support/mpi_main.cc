// main() of tests that run under mpirun: every rank runs the same tests; rank 0 reports, the others only complain.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "collectives/mpi/session.h"

namespace {

class ComplainingPrinter final : public testing::EmptyTestEventListener {
 public:
  explicit ComplainingPrinter(int rank) : rank_(rank) {}
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", rank_, result.file_name() ? result.file_name() : "?",
                 result.line_number(), result.message());
  }

 private:
  const int rank_;
};

}  // namespace

int main(int argc, char** argv) {
  // First, because the session blocks SIGTERM in all threads that start after it.
  auto session = tessera::MpiSession::Create(&argc, &argv, {.watch_termination = true});
  if (!session.ok()) {
    std::fprintf(stderr, "%s\n", session.status().ToString().c_str());
    return EXIT_FAILURE;
  }
  testing::InitGoogleTest(&argc, argv);
  if ((*session)->rank() != 0) {
    testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new ComplainingPrinter((*session)->rank()));
  }
  return RUN_ALL_TESTS();
}
