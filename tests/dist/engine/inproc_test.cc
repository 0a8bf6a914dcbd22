// Distributed attention over threads as ranks: hundreds of random problems, every strategy, 1 to 8 ranks.
#include <gtest/gtest.h>

#include <cstring>
#include <regex>

#include "collectives/inproc/world.h"
#include "partition/cost.h"
#include "partition/planner.h"
#include "tests/support/distributed.h"

namespace tessera {
namespace {

using testing::GeneratorFor;

// Runs all ranks of a plan in this process and returns their traffic.
StatusOr<std::vector<ExecutionStats>> RunAll(const PlanSpec& spec, const testing::Tensors& tensors,
                                             testing::Result& result, const InprocOptions& options = {},
                                             int threads = 1) {
  std::vector<ExecutionStats> stats(spec.mesh.size());
  AttentionOptions attention_options;
  attention_options.threads = threads;
  TESSERA_RETURN_IF_ERROR(RunRanks(spec.mesh.size(), options, [&](Communicator& comm) {
    return testing::RunRank(comm, spec, tensors, attention_options, result, &stats[comm.rank()]);
  }));
  return stats;
}

class RandomProblems : public ::testing::TestWithParam<int> {};

TEST_P(RandomProblems, EveryStrategyMatchesFp64AndCountsItsBytes) {
  const int ranks = GetParam();
  constexpr int kProblems = testing::Problems(40);  // times 8 rank counts: 320 problems
  for (int i = 0; i < kProblems; ++i) {
    const std::string name = absl::StrCat("engine/inproc/", ranks, "/", i);
    auto generator = GeneratorFor(name);
    const Problem problem = testing::RandomProblem(generator, 150);
    const testing::Tensors tensors = testing::RandomTensors(problem, generator);
    for (const std::string& strategy : StrategyNames(ranks)) {
      SCOPED_TRACE(absl::StrCat(name, " ", strategy, " ", problem.ToString()));
      const auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks});
      ASSERT_TRUE(spec.ok()) << spec.status();
      testing::Result result = testing::EmptyResult(problem);
      InprocOptions options;
      options.eager = i % 2 == 0;  // rendezvous semantics every other time
      const auto stats = RunAll(*spec, tensors, result, options, 1 + i % 3);
      ASSERT_TRUE(stats.ok()) << stats.status();
      EXPECT_EQ(testing::Judge(problem, tensors, result), "");
      int64_t received = 0;
      for (const ExecutionStats& s : *stats) received += s.traffic.bytes_received;
      EXPECT_EQ(received, PredictedBytes(*spec));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, RandomProblems, ::testing::Range(1, 9));

TEST(Execution, RepeatsBitwise) {
  auto generator = GeneratorFor("engine/repeats");
  Problem problem = testing::RandomProblem(generator, 150);
  problem.query_tokens = problem.key_tokens = 131;
  problem.mask = Mask::Causal(131, 131).value();
  const testing::Tensors tensors = testing::RandomTensors(problem, generator);
  for (const std::string& strategy : StrategyNames(4)) {
    const auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = 4});
    testing::Result first = testing::EmptyResult(problem);
    testing::Result second = testing::EmptyResult(problem);
    InprocOptions delays;
    delays.longest_delay = std::chrono::microseconds(300);
    ASSERT_TRUE(RunAll(*spec, tensors, first).ok());
    ASSERT_TRUE(RunAll(*spec, tensors, second, delays).ok());
    EXPECT_EQ(std::memcmp(first.output.data(), second.output.data(), first.output.size() * sizeof(double)), 0)
        << strategy;
    EXPECT_EQ(std::memcmp(first.lse.data(), second.lse.data(), first.lse.size() * sizeof(double)), 0) << strategy;
  }
}

TEST(Execution, ManyForwardsOfOneAttentionAgree) {
  auto generator = GeneratorFor("engine/many");
  Problem problem;
  problem.query_tokens = problem.key_tokens = 61;
  problem.query_heads = 4;
  problem.kv_heads = 2;
  problem.qk_width = problem.v_width = 16;
  problem.mask = Mask::Causal(61, 61).value();
  const testing::Tensors tensors = testing::RandomTensors(problem, generator);
  const auto spec = MakePlanSpec(problem, {.strategy = "zigzag", .ranks = 3});
  const Status status = RunRanks(3, {}, [&](Communicator& comm) -> Status {
    const int64_t rows = spec->query_layout.rows(comm.rank());
    const auto bytes = [&](int heads) { return std::vector<std::byte>(rows * heads * 16 * 2); };
    std::vector<std::byte> q = bytes(4), k = bytes(2), v = bytes(2), first = bytes(4), again = bytes(4);
    std::vector<float> lse(rows * 4);
    TESSERA_ASSIGN_OR_RETURN(auto attention, Attention::Create(comm, *spec));
    CpuStream stream;
    const auto view = [&](std::vector<std::byte>& data, int heads) {
      return TensorView::Dense(data.data(), problem.dtype, rows, heads, 16);
    };
    for (int run = 0; run < 20; ++run) {
      TESSERA_RETURN_IF_ERROR(attention->Forward(view(q, 4), view(k, 2), view(v, 2), view(run == 0 ? first : again, 4),
                                                 TensorView::Dense(lse.data(), DType::kFloat32, rows, 4, 1), {},
                                                 stream));
      TESSERA_RETURN_IF_ERROR(stream.Synchronize());
      if (run > 0 && again != first) return absl::DataLossError("runs differ");
    }
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

Problem SmallProblem() {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 64;
  problem.query_heads = problem.kv_heads = 2;
  problem.qk_width = problem.v_width = 8;
  problem.mask = Mask::Causal(64, 64).value();
  return problem;
}

TEST(Agreement, ARankWithAnotherProblemIsNamedByEveryone) {
  std::vector<std::string> errors(4);
  const Status status = RunRanks(4, {}, [&](Communicator& comm) -> Status {
    Problem problem = SmallProblem();
    if (comm.rank() == 2) problem.qk_width = 16;
    const auto spec = MakePlanSpec(problem, {.strategy = "ring", .ranks = 4});
    const auto attention = Attention::Create(comm, *spec);
    errors[comm.rank()] = attention.status().ToString();
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  for (const std::string& error : errors)
    EXPECT_NE(error.find("disagree on the problem: rank 2 differs"), std::string::npos) << error;
}

TEST(Agreement, ARankWithAnotherStrategyIsNamedByEveryone) {
  std::vector<std::string> errors(3);
  const Status status = RunRanks(3, {}, [&](Communicator& comm) -> Status {
    const auto spec = MakePlanSpec(SmallProblem(), {.strategy = comm.rank() == 1 ? "ring" : "zigzag", .ranks = 3});
    errors[comm.rank()] = Attention::Create(comm, *spec).status().ToString();
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  for (const std::string& error : errors)
    EXPECT_NE(error.find("disagree on the plan: rank 1 differs"), std::string::npos) << error;
}

TEST(BadInput, ForwardNamesTheTensorTheValueAndWhatIsNeeded) {
  const auto spec = MakePlanSpec(SmallProblem(), {.strategy = "ring", .ranks = 1});
  const Status status = RunRanks(1, {}, [&](Communicator& comm) -> Status {
    TESSERA_ASSIGN_OR_RETURN(auto attention, Attention::Create(comm, *spec));
    std::vector<float> data(64 * 2 * 8);
    const auto good = TensorView::Dense(data.data(), DType::kBFloat16, 64, 2, 8);
    const auto lse = TensorView::Dense(data.data(), DType::kFloat32, 64, 2, 1);
    CpuStream stream;
    auto bad = good;
    bad.rows = 63;
    EXPECT_EQ(attention->Forward(good, bad, good, good, lse, {}, stream).message(),
              "key: rows is 63; this rank's plan needs 64");
    bad = good;
    bad.dtype = DType::kFloat16;
    EXPECT_EQ(attention->Forward(bad, good, good, good, lse, {}, stream).message(),
              "query: dtype is fp16; this rank's plan needs bf16");
    bad = good;
    bad.space = MemorySpace::kDevice;
    EXPECT_EQ(attention->Forward(good, good, bad, good, lse, {}, stream).message(),
              "value: memory space is device; this rank's plan needs host");
    EXPECT_EQ(attention->Forward(good, good, good, good, good, {}, stream).message(),
              "lse: width is 8; this rank's plan needs 1");
    const float sink = 0;
    EXPECT_EQ(attention->Forward(good, good, good, good, lse, {{}, {&sink, 1}}, stream).message(),
              "sinks: 1 values; the problem needs 0");
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(Faults, AKilledOrFrozenRankIsNamedWithItsStepAndNobodyHangs) {
  for (const auto kind : {InprocFault::Kind::kKill, InprocFault::Kind::kFreeze}) {
    InprocOptions options;
    options.deadline = std::chrono::milliseconds(2000);
    options.faults = {{kind, 2, 10}};  // three agreements at creation, then messages up to the first forward
    options.longest_delay = std::chrono::milliseconds(400);  // long enough for heartbeats to tell the step
    auto generator = GeneratorFor("engine/faults");
    Problem problem = SmallProblem();
    problem.mask = Mask::Full(64, 64).value();
    const testing::Tensors tensors = testing::RandomTensors(problem, generator);
    const auto spec = MakePlanSpec(problem, {.strategy = "zigzag", .ranks = 4});
    testing::Result result = testing::EmptyResult(problem);
    std::vector<std::string> errors(4);
    const Status status = RunRanks(4, options, [&](Communicator& comm) {
      const Status mine = testing::RunRank(comm, *spec, tensors, {}, result);
      errors[comm.rank()] = mine.ToString();
      return mine;
    });
    EXPECT_FALSE(status.ok());
    // Ranks 3 and 0 wait for keys that pass through rank 2; rank 1 has all it needs and may finish.
    for (int rank : {0, 3}) {
      EXPECT_TRUE(std::regex_search(errors[rank], std::regex("rank 2 .*last seen in plan step [0-9]+")))
          << errors[rank];
    }
  }
}

TEST(Faults, AFailedRunDoesNotWaitForALongKernel) {
  // Rank 0 attends its own keys with the slow fp64 kernel, many seconds, while rank 1 freezes.
  Problem problem;
  problem.query_tokens = problem.key_tokens = 16384;
  problem.qk_width = problem.v_width = 64;
  problem.query_heads = problem.kv_heads = 2;
  problem.mask = Mask::Full(16384, 16384).value();
  const auto spec = MakePlanSpec(problem, {.strategy = "ring", .ranks = 2});
  InprocOptions options;
  options.deadline = std::chrono::milliseconds(2000);
  options.faults = {{InprocFault::Kind::kFreeze, 1, 5}};
  AttentionOptions slow;
  slow.kernel = "reference";
  const auto begin = std::chrono::steady_clock::now();
  const Status status = RunRanks(2, options, [&](Communicator& comm) -> Status {
    std::vector<std::byte> data(8192 * 2 * 64 * 2);
    std::vector<float> lse_data(8192 * 2);
    const auto view = TensorView::Dense(data.data(), problem.dtype, 8192, 2, 64);
    TESSERA_ASSIGN_OR_RETURN(auto attention, Attention::Create(comm, *spec, slow));
    std::vector<std::byte> output(data.size());
    CpuStream stream;
    TESSERA_RETURN_IF_ERROR(
        attention->Forward(view, view, view, TensorView::Dense(output.data(), problem.dtype, 8192, 2, 64),
                           TensorView::Dense(lse_data.data(), DType::kFloat32, 8192, 2, 1), {}, stream));
    return stream.Synchronize();
  });
  EXPECT_FALSE(status.ok());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(8)) << status;
}

}  // namespace
}  // namespace tessera
