// Distributed decode attention on GPUs: the random steps of the CPU's tests and the widths of real models, every
// method, against fp64 by the same bounds; graphs; and what is refused before anything is submitted.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "partition/cost.h"
#include "runtime/device/cuda/graph.h"
#include "tests/support/gpu_decode.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

using testing::DecodeCase;
using testing::DecodeResult;
using testing::Gpu;
using testing::GpuDecode;

class CudaDecode : public testing::GpuTest {};

// Runs the case twice, which must give the same bits.
Status RunCase(Gpu& gpu, const DecodeCase& problem, const CudaDecodeOptions& options, DecodeResult& result) {
  TESSERA_ASSIGN_OR_RETURN(GpuDecode decode, GpuDecode::Create(gpu, problem));
  TESSERA_ASSIGN_OR_RETURN(const auto attention,
                           CudaDecodeAttention::Create(*gpu.control, *gpu.data, gpu.device, problem.spec, options));
  TESSERA_ASSIGN_OR_RETURN(CudaDecodeStep step, attention->MakeStep());
  DecodeResult first;
  for (DecodeResult* to : {&first, &result}) {
    TESSERA_RETURN_IF_ERROR(decode.Redraw(problem));
    TESSERA_RETURN_IF_ERROR(step.Upload(decode.sequences(), gpu.stream.handle()));
    TESSERA_RETURN_IF_ERROR(decode.Run(*attention, step));
    TESSERA_RETURN_IF_ERROR(attention->Synchronize());
    TESSERA_RETURN_IF_ERROR(decode.Fetch(*to));
  }
  const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
  };
  if (same(first.output, result.output) && same(first.lse, result.lse)) return absl::OkStatus();
  return absl::InternalError("the second run gave other bits than the first");
}

void ExpectAccurate(Gpu& gpu, const DecodeCase& problem, int64_t expected_rows) {
  gpu.data->ResetTraffic();
  DecodeResult result;
  ASSERT_EQ(RunCase(gpu, problem, testing::GpuDecodeOptions(problem, expected_rows), result), absl::OkStatus());
  EXPECT_EQ(testing::Judge(problem, gpu.control->rank(), result, problem.spec.dtype), "");
  EXPECT_EQ(testing::ReceivedByAll(gpu), 2 * PredictedBytes(problem.spec));
}

TEST_F(CudaDecode, EveryMethodMatchesFp64AndCountsItsBytes) {
  const int ranks = gpu().control->size();
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (int i = 0; i < 8; ++i) {
      const std::string name = absl::StrCat("cuda/decode/", std::string(Name(method)), "/", ranks, "/", i);
      auto generator = testing::GeneratorFor(name);
      const DecodeCase problem = testing::RandomDecodeCase(method, ranks, generator, {.sixteen_bit = true});
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      ExpectAccurate(gpu(), problem, i % 2 == 0 ? 0 : 4096);
    }
  }
}

// The caches of DeepSeek-V3, whole and in slices, and of Llama 3.
TEST_F(CudaDecode, TheWidthsOfModelsMatchFp64) {
  const int ranks = gpu().control->size();
  const CacheRowShape shapes[] = {{true, 1, 576, 512}, {true, 1, 320, 256},  {true, 1, 192, 128},
                                  {true, 1, 128, 64},  {false, 2, 128, 128}, {false, 3, 64, 64}};
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (CacheRowShape shape : shapes) {
      if (method == DecodeMethod::kTpla && !shape.latent) continue;
      const std::string name =
          absl::StrCat("cuda/decode widths/", std::string(Name(method)), "/", ranks, "/", shape.key_width);
      auto generator = testing::GeneratorFor(name);
      shape.dtype = generator() % 2 == 0 ? DType::kBFloat16 : DType::kFloat16;
      DecodeCase problem;
      do problem = testing::RandomDecodeCase(method, ranks, generator, {.sixteen_bit = true, .shape = shape});
      while (problem.rows() == 0);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      ExpectAccurate(gpu(), problem, 256);
    }
  }
}

}  // namespace
}  // namespace tessera
