// Distributed attention on GPUs: the random problems of the CPU's tests, every strategy, against fp64 by the same
// bounds; and what is refused before anything is submitted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "collectives/mpi/communicator.h"
#include "collectives/nccl/communicator.h"
#include "partition/cost.h"
#include "partition/planner.h"
#include "runtime/engine/cuda/attention.h"
#include "tests/support/device_tensors.h"
#include "tests/support/distributed.h"
#include "tests/support/gather_result.h"
#include "tests/support/local_tensors.h"

namespace tessera {
namespace {

using testing::DeviceTensor;

// One rank of a world of GPUs.
struct Gpu {
  std::unique_ptr<Communicator> control;
  std::unique_ptr<StreamCommunicator> data;
  CudaDevice device;
  CudaStream stream;

  static StatusOr<Gpu> Open() {
    TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> control, MakeMpiWorld());
    TESSERA_ASSIGN_OR_RETURN(CudaDevice device, OpenDeviceOfRank(*control));
    TESSERA_ASSIGN_OR_RETURN(std::unique_ptr<StreamCommunicator> data, MakeNcclCommunicator(*control, device));
    TESSERA_ASSIGN_OR_RETURN(CudaStream stream, CudaStream::Create(device));
    return Gpu{std::move(control), std::move(data), std::move(device), std::move(stream)};
  }
};

class Cuda : public ::testing::Test {
 protected:
  // The world of the process: MPI is started once.
  static Gpu& gpu() {
    static StatusOr<Gpu> world = Gpu::Open();
    EXPECT_TRUE(world.ok()) << world.status();
    return *world;
  }
};

// What CUDA serves of a random problem: 16-bit types, widths up to 256.
Problem Served(Problem problem, std::mt19937_64& generator) {
  problem.dtype = generator() % 2 == 0 ? DType::kBFloat16 : DType::kFloat16;
  problem.qk_width = std::min(problem.qk_width, 256);
  problem.v_width = std::min(problem.v_width, 256);
  return problem;
}

// Runs this rank's part, `runs` times over. `gap`: elements between the rows of the caller's tensors.
Status RunOnGpu(Gpu& gpu, const PlanSpec& spec, const testing::Tensors& tensors, int64_t gap, int runs,
                testing::Result& result) {
  const Problem& p = spec.problem;
  const int rank = gpu.control->rank();
  testing::LocalInputs in(spec, rank, tensors);
  testing::PoisonedTensor output(p.dtype, spec.query_layout.rows(rank), p.query_heads, p.v_width);
  testing::PoisonedTensor lse(DType::kFloat32, spec.query_layout.rows(rank), p.query_heads, 1);
  std::vector<DeviceTensor> on_device;
  for (testing::PoisonedTensor* tensor : {&in.query, &in.key, &in.value, &output, &lse}) {
    TESSERA_ASSIGN_OR_RETURN(on_device.emplace_back(),
                             DeviceTensor::Create(gpu.device, gpu.stream, tensor->view(), gap));
    TESSERA_RETURN_IF_ERROR(on_device.back().Fill(tensor->view(), gpu.stream));
  }
  TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer slopes,
                           testing::DeviceNumbers(gpu.device, gpu.stream, tensors.alibi_slopes));
  TESSERA_ASSIGN_OR_RETURN(const DeviceBuffer sinks, testing::DeviceNumbers(gpu.device, gpu.stream, tensors.sinks));
  const CudaHeadVectors vectors{reinterpret_cast<const float*>(slopes.data()),
                                reinterpret_cast<const float*>(sinks.data())};
  TESSERA_ASSIGN_OR_RETURN(const auto attention, CudaAttention::Create(*gpu.control, *gpu.data, gpu.device, spec));
  for (int run = 0; run < runs; ++run) {
    TESSERA_RETURN_IF_ERROR(attention->Forward(on_device[0].view(), on_device[1].view(), on_device[2].view(),
                                               on_device[3].view(), on_device[4].view(), vectors, gpu.stream.handle()));
  }
  TESSERA_RETURN_IF_ERROR(attention->Synchronize());
  TESSERA_RETURN_IF_ERROR(on_device[3].Fetch(output.view(), gpu.stream));
  TESSERA_RETURN_IF_ERROR(on_device[4].Fetch(lse.view(), gpu.stream));
  TESSERA_RETURN_IF_ERROR(gpu.stream.Synchronize("fetching the result"));
  testing::Scatter(output.view(), spec.query_layout, rank, result.output);
  testing::Scatter(lse.view(), spec.query_layout, rank, result.lse);
  return absl::OkStatus();
}

TEST_F(Cuda, EveryStrategyMatchesFp64AndCountsItsBytes) {
  Communicator& control = *gpu().control;
  const int ranks = control.size();
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
      const Status status = RunOnGpu(gpu(), *spec, tensors, i % 2 == 0 ? 0 : 8, runs, result);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(testing::GatherResult(control, *spec, result).ok());
      EXPECT_EQ(testing::Judge(problem, tensors, result), "");
      // Counts stay far below 2^24, so a float sum is exact.
      const auto received = static_cast<float>(gpu().data->traffic().bytes_received);
      float total = 0;
      auto request = control.AllReduceSum({&received, 1}, {&total, 1});
      ASSERT_TRUE(request.ok() && Wait(control, *request, "summing traffic").ok());
      EXPECT_EQ(static_cast<int64_t>(total), runs * PredictedBytes(*spec));
    }
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
