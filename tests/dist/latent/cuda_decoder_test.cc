// Latent decoding on GPUs: the random histories of the CPU's tests, every method, against fp64 by the same bounds.
#include <gtest/gtest.h>

#include <functional>

#include "collectives/agreement.h"
#include "collectives/inproc/world.h"
#include "tests/dist/latent/on_gpu.h"
#include "tests/dist/latent/run_events.h"
#include "tests/support/problems.h"

namespace tessera::latent_test {
namespace {

// A case that CUDA serves: caches of 16 bits.
LatentCase RandomGpuCase(DecodeMethod method, int ranks, std::mt19937_64& generator) {
  LatentCase problem = RandomLatentCase(method, ranks, generator);
  problem.options.cache_dtype = generator() % 2 == 0 ? DType::kBFloat16 : DType::kFloat16;
  return problem;
}

CudaMlaDecoderOptions OptionsFor(const LatentCase& problem) {
  CudaMlaDecoderOptions options;
  options.decoder = problem.options;
  for (const Event& event : problem.events) {
    options.max_sequences = std::max(options.max_sequences, static_cast<int>(event.step.size()));
    for (const StepTokens& entry : event.step) {
      options.max_tokens_per_sequence = std::max(options.max_tokens_per_sequence, static_cast<int>(entry.tokens));
    }
  }
  options.expected_tokens = problem.options.max_positions;
  return options;
}

Status RunOnGpu(Gpu& gpu, const LatentCase& problem, std::vector<float>& output) {
  output.clear();
  TESSERA_ASSIGN_OR_RETURN(const auto on, OnGpu::Create(gpu, problem.shape, OptionsFor(problem)));
  for (size_t i = 0; i < problem.layers.size(); ++i) {
    const bool sliced = problem.options.method == DecodeMethod::kTpla;
    TESSERA_RETURN_IF_ERROR(
        on->decoder().AddLayer(problem.layers[i].weights, sliced ? problem.factors[i] : TplaFactors()));
  }
  std::vector<SequenceId> ids;
  for (size_t i = 0; i < problem.prefix.size(); ++i) ids.push_back(on->decoder().Start());
  const auto attend = [&](int layer, const std::vector<float>& hidden, std::vector<float>& out) {
    return on->Attend(layer, hidden, out);
  };
  return RunEvents(*gpu.control, problem, problem.options, on->decoder(), std::move(ids), attend, output);
}

class CudaLatentDecoder : public testing::GpuTest {};

TEST_F(CudaLatentDecoder, EveryMethodMatchesFp64AndHoldsWhatItShould) {
  const int ranks = gpu().control->size();
  constexpr int kCases = testing::Problems(5);  // times 5 methods
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (int i = 0; i < kCases; ++i) {
      const std::string name = absl::StrCat("latent/cuda/", std::string(Name(method)), "/", ranks, "/", i);
      auto generator = testing::GeneratorFor(name);
      const LatentCase problem = RandomGpuCase(method, ranks, generator);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      std::vector<float> output;
      ASSERT_EQ(RunOnGpu(gpu(), problem, output), absl::OkStatus());
      EXPECT_TRUE(SameEverywhere(gpu(), output));
      if (gpu().control->rank() > 0) continue;
      // One rank of the CPU is the yardstick.
      const MlaDecoderOptions one = OneRank(problem.options);
      std::vector<float> plain;
      const auto run = [&](Communicator& comm) { return RunLatentRank(comm, problem, one, plain); };
      ASSERT_EQ(RunRanks(1, {}, run), absl::OkStatus());
      const auto exact = ExactSteps(problem, problem.options), whole = ExactSteps(problem, one);
      ASSERT_TRUE(exact.ok() && whole.ok()) << exact.status() << whole.status();
      EXPECT_EQ(Compare(ErrorsOf(output, *exact), ErrorsOf(plain, *whole), problem.options), "");
    }
  }
}

// Slices attend by themselves, so the CPU's slices are what these are: no sum over ranks hides a difference.
TEST_F(CudaLatentDecoder, SlicesComputeWhatTheCpusDo) {
  const int ranks = gpu().control->size();
  for (int i = 0; i < testing::Problems(3); ++i) {
    const std::string name = absl::StrCat("latent/cuda/slices/", ranks, "/", i);
    auto generator = testing::GeneratorFor(name);
    LatentCase problem = RandomGpuCase(DecodeMethod::kTpla, ranks, generator);
    problem.options.cache_dtype = DType::kFloat16;
    problem.options.compute = DType::kFloat32;
    SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
    std::vector<float> output, cpu;
    ASSERT_EQ(RunOnGpu(gpu(), problem, output), absl::OkStatus());
    ASSERT_EQ(RunLatentRank(*gpu().control, problem, problem.options, cpu), absl::OkStatus());
    // Both round latents, queries and (GPU) softmax weights to 11 bits, at times to the other side.
    const RelativeErrors difference = ErrorsOf(output, {cpu.begin(), cpu.end()});
    EXPECT_LE(difference.rms, 1e-3);
    EXPECT_LE(difference.max, 1e-2);
  }
}

}  // namespace
}  // namespace tessera::latent_test
