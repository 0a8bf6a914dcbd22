// Distributed gradients against fp64: random problems, every strategy, 1 to 8 ranks as threads.
#include <gtest/gtest.h>

#include <cstring>

#include "collectives/inproc/world.h"
#include "partition/cost.h"
#include "partition/planner.h"
#include "tests/support/gradients.h"

namespace tessera {
namespace {

using testing::GeneratorFor;

StatusOr<std::vector<ExecutionStats>> RunAll(const PlanSpec& spec, const testing::Tensors& tensors,
                                             const testing::OutputGradient& output_gradient,
                                             testing::Gradients& gradients, const InprocOptions& options = {}) {
  std::vector<ExecutionStats> stats(spec.mesh.size());
  TESSERA_RETURN_IF_ERROR(RunRanks(spec.mesh.size(), options, [&](Communicator& comm) {
    return testing::RunRankBackward(comm, spec, tensors, output_gradient, gradients, &stats[comm.rank()]);
  }));
  return stats;
}

class RandomGradients : public ::testing::TestWithParam<int> {};

TEST_P(RandomGradients, EveryStrategyMatchesFp64AndCountsItsBytes) {
  const int ranks = GetParam();
  constexpr int kProblems = testing::Problems(40);  // times 8 rank counts: 320 problems
  for (int i = 0; i < kProblems; ++i) {
    const std::string name = absl::StrCat("engine/backward/", ranks, "/", i);
    auto generator = GeneratorFor(name);
    const Problem problem = testing::RandomProblem(generator, 120);
    const testing::Tensors tensors = testing::RandomTensors(problem, generator);
    const testing::OutputGradient output_gradient = testing::RandomOutputGradient(problem, generator);
    const testing::GradientJudge judge(problem, tensors, output_gradient);
    for (const std::string& strategy : StrategyNames(ranks)) {
      SCOPED_TRACE(absl::StrCat(name, " ", strategy, " ", problem.ToString()));
      auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks});
      ASSERT_TRUE(spec.ok()) << spec.status();
      testing::Gradients gradients = testing::EmptyGradients(problem);
      InprocOptions options;
      options.eager = i % 2 == 0;  // rendezvous semantics every other time
      const auto stats = RunAll(*spec, tensors, output_gradient, gradients, options);
      ASSERT_TRUE(stats.ok()) << stats.status();
      EXPECT_EQ(judge.Judge(gradients), "");
      int64_t received = 0;
      for (const ExecutionStats& s : *stats) received += s.traffic.bytes_received;
      spec->pass = Pass::kBackward;
      EXPECT_EQ(received, PredictedBytes(*spec));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, RandomGradients, ::testing::Range(1, 9));

TEST(Backward, RepeatsBitwiseWhateverTheOrderOfArrival) {
  auto generator = GeneratorFor("engine/backward/repeats");
  Problem problem = testing::RandomProblem(generator, 120);
  problem.query_tokens = problem.key_tokens = 113;
  problem.mask = Mask::Causal(113, 113).value();
  const testing::Tensors tensors = testing::RandomTensors(problem, generator);
  const testing::OutputGradient output_gradient = testing::RandomOutputGradient(problem, generator);
  for (const std::string& strategy : StrategyNames(4)) {
    const auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = 4});
    testing::Gradients first = testing::EmptyGradients(problem);
    testing::Gradients second = testing::EmptyGradients(problem);
    InprocOptions delays;
    delays.longest_delay = std::chrono::microseconds(300);
    ASSERT_TRUE(RunAll(*spec, tensors, output_gradient, first).ok());
    ASSERT_TRUE(RunAll(*spec, tensors, output_gradient, second, delays).ok());
    const auto equal = [](const std::vector<double>& a, const std::vector<double>& b) {
      return std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
    };
    EXPECT_TRUE(equal(first.query, second.query)) << strategy;
    EXPECT_TRUE(equal(first.key, second.key)) << strategy;
    EXPECT_TRUE(equal(first.value, second.value)) << strategy;
    EXPECT_TRUE(equal(first.sink, second.sink)) << strategy;
  }
}

AttentionOptions WithBackward() {
  AttentionOptions options;
  options.backward = true;
  return options;
}

TEST(BackwardBadInput, NamesTheArgument) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 16;
  problem.query_heads = problem.kv_heads = 2;
  problem.qk_width = problem.v_width = 8;
  problem.dtype = DType::kFloat32;
  problem.mask = Mask::Causal(16, 16).value();
  const auto spec = MakePlanSpec(problem, {.strategy = "ring", .ranks = 1});
  const Status status = RunRanks(1, {}, [&](Communicator& comm) -> Status {
    std::vector<std::vector<float>> memory(9, std::vector<float>(16 * 2 * 8));
    const auto view = [&](int i) {
      return TensorView::Dense(memory[i].data(), DType::kFloat32, 16, 2, i == 4 ? 1 : 8);
    };
    const BackwardTensors good{view(0), view(1), view(2), view(3), view(4), view(5), view(6), view(7), view(8), {}};
    CpuStream stream;
    TESSERA_ASSIGN_OR_RETURN(auto without, Attention::Create(comm, *spec));
    EXPECT_EQ(without->Backward(good, {}, stream).message(),
              "backward: this attention was created without options.backward");
    TESSERA_ASSIGN_OR_RETURN(auto attention, Attention::Create(comm, *spec, WithBackward()));
    EXPECT_EQ(attention->Backward(good, {}, stream).message(),
              "backward: forward has not run; it produces the output and lse that backward reads");
    TESSERA_RETURN_IF_ERROR(attention->Forward(view(0), view(1), view(2), view(3), view(4), {}, stream));
    TESSERA_RETURN_IF_ERROR(stream.Synchronize());
    BackwardTensors bad = good;
    bad.lse.rows = 15;
    EXPECT_EQ(attention->Backward(bad, {}, stream).message(), "lse: rows is 15; this rank's plan needs 16");
    bad = good;
    bad.key_gradient = view(1);
    EXPECT_EQ(attention->Backward(bad, {}, stream).message(),
              "key_gradient overlaps key in memory; it is written while key is read and must be apart");
    bad = good;
    std::vector<float> sink(2);
    bad.sink_gradient = sink;
    EXPECT_EQ(attention->Backward(bad, {}, stream).message(), "sink_gradient: 2 values; the problem needs 0");
    TESSERA_RETURN_IF_ERROR(attention->Backward(good, {}, stream));
    return stream.Synchronize();
  });
  EXPECT_TRUE(status.ok()) << status;
}

// Inputs and gradients as frameworks pack them: [rows, heads, q | k | v] in one buffer each, every other row of which
// belongs to someone else.
TEST(Backward, TakesInterleavedViewsOfOneBufferAndRefusesThoseThatMeet) {
  constexpr int kWidth = 8, kHeads = 2, kPacked = kHeads * 3 * kWidth;
  Problem problem;
  problem.query_tokens = problem.key_tokens = 33;
  problem.query_heads = problem.kv_heads = kHeads;
  problem.qk_width = problem.v_width = kWidth;
  problem.dtype = DType::kFloat32;
  problem.mask = Mask::Causal(33, 33).value();
  auto generator = GeneratorFor("engine/backward/packed");
  const testing::Tensors tensors = testing::RandomTensors(problem, generator);
  const testing::OutputGradient output_gradient = testing::RandomOutputGradient(problem, generator);
  const testing::GradientJudge judge(problem, tensors, output_gradient);
  const auto spec = MakePlanSpec(problem, {.strategy = "zigzag", .ranks = 2});
  testing::Gradients gradients = testing::EmptyGradients(problem);
  const Status status = RunRanks(2, {}, [&](Communicator& comm) -> Status {
    const int64_t rows = spec->query_layout.rows(comm.rank());
    std::vector<float> inputs(2 * rows * kPacked, 7.0f), outputs = inputs, results = inputs, lse(rows * kHeads);
    const auto part = [&](std::vector<float>& buffer, int which) {
      TensorView view = TensorView::Dense(buffer.data() + which * kWidth, DType::kFloat32, rows, kHeads, kWidth);
      view.head_stride = 3 * kWidth;
      view.row_stride = 2 * kPacked;
      return view;
    };
    const auto fill = [&](const TensorView& to, const std::byte* from) {
      for (int64_t row = 0; row < rows; ++row) {
        const auto token = static_cast<int64_t>(spec->query_layout.ToGlobal(comm.rank(), LocalToken{row}));
        for (int head = 0; head < kHeads; ++head) {
          std::memcpy(to.At(row, head), from + (token * kHeads + head) * kWidth * sizeof(float),
                      kWidth * sizeof(float));
        }
      }
    };
    fill(part(inputs, 0), tensors.query.data());
    fill(part(inputs, 1), tensors.key.data());
    fill(part(inputs, 2), tensors.value.data());
    fill(part(results, 1), output_gradient.data());
    TESSERA_ASSIGN_OR_RETURN(auto attention, Attention::Create(comm, *spec, WithBackward()));
    CpuStream stream;
    const auto lse_view = TensorView::Dense(lse.data(), DType::kFloat32, rows, kHeads, 1);
    TESSERA_RETURN_IF_ERROR(
        attention->Forward(part(inputs, 0), part(inputs, 1), part(inputs, 2), part(results, 0), lse_view, {}, stream));
    TESSERA_RETURN_IF_ERROR(stream.Synchronize());
    BackwardTensors backward{part(inputs, 0),  part(inputs, 1),  part(inputs, 2),  part(results, 0), lse_view,
                             part(results, 1), part(outputs, 0), part(outputs, 1), part(outputs, 2), {}};
    TESSERA_RETURN_IF_ERROR(attention->Backward(backward, {}, stream));
    TESSERA_RETURN_IF_ERROR(stream.Synchronize());
    const auto take = [&](const TensorView& from, std::vector<double>& to) {
      for (int64_t row = 0; row < rows; ++row) {
        const auto token = static_cast<int64_t>(spec->query_layout.ToGlobal(comm.rank(), LocalToken{row}));
        for (int i = 0; i < kHeads * kWidth; ++i) {
          to[token * kHeads * kWidth + i] = LoadAsDouble(from.At(row, i / kWidth), from.dtype, i % kWidth);
        }
      }
    };
    take(backward.query_gradient, gradients.query);
    take(backward.key_gradient, gradients.key);
    take(backward.value_gradient, gradients.value);
    for (int64_t row = 0; row < rows; ++row) {
      EXPECT_EQ(outputs[(2 * row + 1) * kPacked], 7.0f) << "a row of someone else was written";
    }
    // One element too far to the left: the key's gradient ends where the value's begins.
    backward.value_gradient.data = static_cast<float*>(backward.value_gradient.data) - 1;
    EXPECT_EQ(attention->Backward(backward, {}, stream).message(),
              "key_gradient overlaps value_gradient in memory; it is written while value_gradient is read and must be "
              "apart");
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(judge.Judge(gradients), "");
}

}  // namespace
}  // namespace tessera
