// Distributed attention on GPUs: the random problems of the CPU's tests, every strategy, against fp64 by the same
// bounds; and what is refused before anything is submitted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "partition/cost.h"
#include "partition/planner.h"
#include "runtime/device/cuda/graph.h"
#include "runtime/engine/cuda/attention.h"
#include "tests/support/device_tensors.h"
#include "tests/support/distributed.h"
#include "tests/support/gather_result.h"
#include "tests/support/gpu_world.h"
#include "tests/support/local_tensors.h"

namespace tessera {
namespace {

using testing::DeviceTensor;
using testing::Gpu;

class Cuda : public testing::GpuTest {};

// What CUDA serves of a random problem: 16-bit types, widths up to 256.
Problem Served(Problem problem, std::mt19937_64& generator) {
  problem.dtype = generator() % 2 == 0 ? DType::kBFloat16 : DType::kFloat16;
  problem.qk_width = std::min(problem.qk_width, 256);
  problem.v_width = std::min(problem.v_width, 256);
  return problem;
}

// One rank's shards on its GPU.
class Shards {
 public:
  // `gap`: elements between the rows of the caller's tensors.
  Shards(Gpu& gpu, const PlanSpec& spec, const testing::Tensors& tensors, int64_t gap)
      : gpu_(gpu),
        spec_(spec),
        rank_(gpu.control->rank()),
        gap_(gap),
        in_(spec, rank_, tensors),
        output_(spec.problem.dtype, spec.query_layout.rows(rank_), spec.problem.query_heads, spec.problem.v_width),
        lse_(DType::kFloat32, spec.query_layout.rows(rank_), spec.problem.query_heads, 1) {}

  Status Upload(const testing::Tensors& tensors) {
    for (testing::PoisonedTensor* tensor : {&in_.query, &in_.key, &in_.value, &output_, &lse_}) {
      TESSERA_RETURN_IF_ERROR(Add(*tensor));
    }
    TESSERA_ASSIGN_OR_RETURN(slopes_, testing::DeviceNumbers(gpu_.device, gpu_.stream, tensors.alibi_slopes));
    TESSERA_ASSIGN_OR_RETURN(sinks_, testing::DeviceNumbers(gpu_.device, gpu_.stream, tensors.sinks));
    return absl::OkStatus();
  }
  // Adds a tensor to those on the device.
  Status Add(const testing::PoisonedTensor& tensor) {
    TESSERA_ASSIGN_OR_RETURN(DeviceTensor made, DeviceTensor::Create(gpu_.device, gpu_.stream, tensor.view(), gap_));
    on_device_.push_back(std::move(made));
    return on_device_.back().Fill(tensor.view(), gpu_.stream);
  }
  const TensorView& view(int i) const { return on_device_[i].view(); }
  CudaHeadVectors vectors() const {
    return {reinterpret_cast<const float*>(slopes_.data()), reinterpret_cast<const float*>(sinks_.data())};
  }
  Status Forward(CudaAttention& attention) {
    return attention.Forward(view(0), view(1), view(2), view(3), view(4), vectors(), gpu_.stream.handle());
  }
  // Query, key and value become those of shards of the same plan.
  Status CopyInputs(const Shards& other) {
    for (int i = 0; i < 3; ++i) {
      TESSERA_RETURN_IF_ERROR(CopyAsync(view(i).data, other.view(i).data, view(i).bytes(), gpu_.stream.handle()));
    }
    return absl::OkStatus();
  }
  Status Fetch(int i, testing::PoisonedTensor& tensor, const Layout& layout, std::vector<double>& whole) {
    TESSERA_RETURN_IF_ERROR(on_device_[i].Fetch(tensor.view(), gpu_.stream));
    TESSERA_RETURN_IF_ERROR(gpu_.stream.Synchronize("fetching a tensor"));
    testing::Scatter(tensor.view(), layout, rank_, whole);
    return absl::OkStatus();
  }
  Status FetchResult(testing::Result& result) {
    TESSERA_RETURN_IF_ERROR(Fetch(3, output_, spec_.query_layout, result.output));
    return Fetch(4, lse_, spec_.query_layout, result.lse);
  }

 private:
  Gpu& gpu_;
  const PlanSpec& spec_;
  const int rank_;
  const int64_t gap_;
  testing::LocalInputs in_;
  testing::PoisonedTensor output_, lse_;
  std::vector<DeviceTensor> on_device_;  // query, key, value, output, lse, and what is added
  DeviceBuffer slopes_, sinks_;
};

Status RunForward(Gpu& gpu, const PlanSpec& spec, const testing::Tensors& tensors, int64_t gap, int runs,
                  testing::Result& result) {
  Shards shards(gpu, spec, tensors, gap);
  TESSERA_RETURN_IF_ERROR(shards.Upload(tensors));
  TESSERA_ASSIGN_OR_RETURN(const auto attention, CudaAttention::Create(*gpu.control, *gpu.data, gpu.device, spec));
  for (int run = 0; run < runs; ++run) TESSERA_RETURN_IF_ERROR(shards.Forward(*attention));
  TESSERA_RETURN_IF_ERROR(attention->Synchronize());
  return shards.FetchResult(result);
}

Status RunBackward(Gpu& gpu, const PlanSpec& spec, const testing::Tensors& tensors,
                   const testing::OutputGradient& output_gradient, int64_t gap, testing::Gradients& gradients) {
  const Problem& p = spec.problem;
  const int rank = gpu.control->rank();
  const int64_t query_rows = spec.query_layout.rows(rank), key_rows = spec.key_layout.rows(rank);
  Shards shards(gpu, spec, tensors, gap);
  TESSERA_RETURN_IF_ERROR(shards.Upload(tensors));
  testing::PoisonedTensor incoming(p.dtype, query_rows, p.query_heads, p.v_width);
  testing::Gather(ConstTensorView::Dense(output_gradient.data(), p.dtype, p.query_tokens, p.query_heads, p.v_width),
                  spec.query_layout, rank, incoming);
  testing::PoisonedTensor query(p.dtype, query_rows, p.query_heads, p.qk_width);
  testing::PoisonedTensor key(p.dtype, key_rows, p.kv_heads, p.qk_width);
  testing::PoisonedTensor value(p.dtype, key_rows, p.kv_heads, p.v_width);
  for (const auto* tensor : {&incoming, &query, &key, &value}) TESSERA_RETURN_IF_ERROR(shards.Add(*tensor));
  std::vector<float> sink(p.score.sink ? p.query_heads : 0, NAN);
  TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer sink_gradient, testing::DeviceNumbers(gpu.device, gpu.stream, sink));

  TESSERA_ASSIGN_OR_RETURN(const auto attention, CudaAttention::Create(*gpu.control, *gpu.data, gpu.device, spec,
                                                                       {.kernel = "", .backward = true}));
  TESSERA_RETURN_IF_ERROR(shards.Forward(*attention));
  const CudaBackwardTensors tensors_of_pass{
      shards.view(0), shards.view(1), shards.view(2), shards.view(3), shards.view(4),
      shards.view(5), shards.view(6), shards.view(7), shards.view(8), reinterpret_cast<float*>(sink_gradient.data())};
  TESSERA_RETURN_IF_ERROR(attention->Backward(tensors_of_pass, shards.vectors(), gpu.stream.handle()));
  TESSERA_RETURN_IF_ERROR(attention->Synchronize());
  TESSERA_RETURN_IF_ERROR(shards.Fetch(6, query, spec.query_layout, gradients.query));
  TESSERA_RETURN_IF_ERROR(shards.Fetch(7, key, spec.key_layout, gradients.key));
  TESSERA_RETURN_IF_ERROR(shards.Fetch(8, value, spec.key_layout, gradients.value));
  if (!sink.empty()) {
    TESSERA_RETURN_IF_ERROR(CopyAsync(sink.data(), sink_gradient.data(), sink_gradient.bytes(), gpu.stream.handle()));
    TESSERA_RETURN_IF_ERROR(gpu.stream.Synchronize("fetching the sinks' gradient"));
  }
  gradients.sink.assign(sink.begin(), sink.end());
  return absl::OkStatus();
}

TEST_F(Cuda, EveryStrategyMatchesFp64AndCountsItsBytes) {
  const int ranks = gpu().control->size();
  for (int i = 0; i < 8; ++i) {
    const std::string name = absl::StrCat("engine/cuda/", ranks, "/", i);
    auto generator = testing::GeneratorFor(name);
    const Problem problem = Served(testing::RandomProblem(generator, 120), generator);
    const testing::Tensors tensors = testing::RandomTensors(problem, generator);
    for (const std::string& strategy : StrategyNames(ranks)) {
      SCOPED_TRACE(absl::StrCat(name, " ", strategy, " ", problem.ToString()));
      const auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks});
      ASSERT_TRUE(spec.ok()) << spec.status();
      testing::Result result = testing::EmptyResult(problem);
      gpu().data->ResetTraffic();
      const int runs = i % 3 == 0 ? 2 : 1;
      const Status status = RunForward(gpu(), *spec, tensors, i % 2 == 0 ? 0 : 8, runs, result);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(testing::GatherResult(*gpu().control, *spec, result).ok());
      EXPECT_EQ(testing::Judge(problem, tensors, result), "");
      EXPECT_EQ(testing::ReceivedByAll(gpu()), runs * PredictedBytes(*spec));
    }
  }
}

TEST_F(Cuda, EveryStrategysGradientsMatchFp64) {
  const int ranks = gpu().control->size();
  for (int i = 0; i < 4; ++i) {
    const std::string name = absl::StrCat("engine/cuda/backward/", ranks, "/", i);
    auto generator = testing::GeneratorFor(name);
    const Problem problem = Served(testing::RandomProblem(generator, 90), generator);
    const testing::Tensors tensors = testing::RandomTensors(problem, generator);
    const testing::OutputGradient output_gradient = testing::RandomOutputGradient(problem, generator);
    const testing::GradientJudge judge(problem, tensors, output_gradient, problem.dtype);
    for (const std::string& strategy : StrategyNames(ranks)) {
      SCOPED_TRACE(absl::StrCat(name, " ", strategy, " ", problem.ToString()));
      const auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks});
      ASSERT_TRUE(spec.ok()) << spec.status();
      testing::Gradients gradients = testing::EmptyGradients(problem);
      const Status status = RunBackward(gpu(), *spec, tensors, output_gradient, i % 2 == 0 ? 0 : 8, gradients);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(testing::GatherGradients(*gpu().control, *spec, gradients).ok());
      EXPECT_EQ(judge.Judge(gradients), "");
    }
  }
}

TEST_F(Cuda, ACapturedStepRepeatsWithNewInputs) {
  const int ranks = gpu().control->size();
  for (const std::string& strategy : StrategyNames(ranks)) {
    SCOPED_TRACE(strategy);
    auto generator = testing::GeneratorFor(absl::StrCat("engine/cuda/graph/", ranks));
    Problem problem = Served(testing::RandomProblem(generator, 60), generator);
    const testing::Tensors first = testing::RandomTensors(problem, generator);
    const testing::Tensors second = testing::RandomTensors(problem, generator);
    const auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks});
    ASSERT_TRUE(spec.ok()) << spec.status();
    testing::Result result = testing::EmptyResult(problem);
    const auto run = [&]() -> Status {
      Shards shards(gpu(), *spec, first, 0), others(gpu(), *spec, second, 0);
      TESSERA_RETURN_IF_ERROR(shards.Upload(first));
      TESSERA_RETURN_IF_ERROR(others.Upload(second));
      TESSERA_ASSIGN_OR_RETURN(const auto attention,
                               CudaAttention::Create(*gpu().control, *gpu().data, gpu().device, *spec));
      TESSERA_RETURN_IF_ERROR(shards.Forward(*attention));
      TESSERA_RETURN_IF_ERROR(attention->Synchronize());
      TESSERA_ASSIGN_OR_RETURN(const CudaGraph graph,
                               CudaGraph::Capture(gpu().stream.handle(), [&] { return shards.Forward(*attention); }));
      TESSERA_RETURN_IF_ERROR(shards.CopyInputs(others));
      for (int i = 0; i < 2; ++i) TESSERA_RETURN_IF_ERROR(graph.Launch(gpu().stream.handle()));
      TESSERA_RETURN_IF_ERROR(gpu().stream.Synchronize("running the graph"));
      return shards.FetchResult(result);
    };
    const Status status = run();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(testing::GatherResult(*gpu().control, *spec, result).ok());
    testing::Tensors expected = second;  // the vectors are those of the capture
    expected.alibi_slopes = first.alibi_slopes;
    expected.sinks = first.sinks;
    EXPECT_EQ(testing::Judge(problem, expected, result), "");
  }
}

TEST_F(Cuda, RefusesWhatItCannotServeOnEveryRank) {
  Communicator& control = *gpu().control;
  auto generator = testing::GeneratorFor("engine/cuda/refusals");
  Problem problem = Served(testing::RandomProblem(generator, 60), generator);
  problem.dtype = DType::kFloat32;
  const auto spec = MakePlanSpec(problem, {.strategy = "ring", .ranks = control.size()});
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto attention = CudaAttention::Create(control, *gpu().data, gpu().device, *spec);
  ASSERT_FALSE(attention.ok());
  EXPECT_EQ(attention.status().code(), absl::StatusCode::kNotFound) << attention.status();
  EXPECT_THAT(std::string(attention.status().message()), ::testing::HasSubstr("cuda-sm80"));
  PlanSpec other = *spec;
  other.problem.dtype = DType::kBFloat16;
  other.mesh.outer_ranks *= 2;
  EXPECT_EQ(CudaAttention::Create(control, *gpu().data, gpu().device, other).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(Cuda, BadTensorsAreNamedBeforeAnythingIsSubmitted) {
  Communicator& control = *gpu().control;
  Problem problem;
  problem.query_tokens = problem.key_tokens = 8 * control.size();
  problem.query_heads = problem.kv_heads = 2;
  problem.qk_width = problem.v_width = 64;
  problem.dtype = DType::kBFloat16;
  problem.mask = *Mask::Causal(problem.query_tokens, problem.key_tokens);
  const auto spec = MakePlanSpec(problem, {.strategy = "ring", .ranks = control.size()});
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto attention = CudaAttention::Create(control, *gpu().data, gpu().device, *spec);
  ASSERT_TRUE(attention.ok()) << attention.status();
  std::vector<uint16_t> memory(8 * 2 * 64);
  TensorView tensor = TensorView::Dense(memory.data(), DType::kBFloat16, 8, 2, 64);
  TensorView lse = TensorView::Dense(memory.data(), DType::kFloat32, 8, 2, 1);
  const auto refusal = [&](const CudaHeadVectors& vectors) {
    return std::string(
        (*attention)->Forward(tensor, tensor, tensor, tensor, lse, vectors, gpu().stream.handle()).message());
  };
  EXPECT_EQ(refusal({}), "query: memory space is host; this rank's plan needs device");
  tensor.space = lse.space = MemorySpace::kDevice;
  tensor.rows = 7;
  EXPECT_EQ(refusal({}), "query: rows is 7; this rank's plan needs 8");
  tensor.rows = 8;
  lse.dtype = DType::kFloat64;
  EXPECT_EQ(refusal({}), "lse: dtype is fp64; this rank's plan needs fp32");
  lse.dtype = DType::kFloat32;
  const float slope = 1;
  EXPECT_EQ(refusal({&slope, nullptr}), "alibi_slopes is given; the problem needs none");
  EXPECT_TRUE((*attention)->Synchronize().ok());
}

}  // namespace
}  // namespace tessera
