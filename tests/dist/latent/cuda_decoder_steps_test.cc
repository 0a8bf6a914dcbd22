// Steps of a latent decoder on GPUs: forks, graphs, a rank out of pages, and what is refused.
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/device/cuda/graph.h"
#include "tests/dist/latent/on_gpu.h"
#include "tests/dist/latent/run_events.h"

namespace tessera::latent_test {
namespace {

using Step = std::vector<StepTokens>;

CudaMlaDecoderOptions SmallGpuOptions(DecodeMethod method) {
  CudaMlaDecoderOptions options;
  options.decoder = SmallOptions(method);
  options.max_sequences = 3;
  options.max_tokens_per_sequence = 80;
  options.expected_tokens = 20;
  return options;
}

// A decoder of one layer, and its steps by sequence and position alone.
class Decoding {
 public:
  static StatusOr<std::unique_ptr<Decoding>> Create(Gpu& gpu, const CudaMlaDecoderOptions& options) {
    auto decoding = std::unique_ptr<Decoding>(new Decoding);
    TESSERA_ASSIGN_OR_RETURN(decoding->on, OnGpu::Create(gpu, decoding->layer.shape, options));
    TESSERA_RETURN_IF_ERROR(decoding->decoder().AddLayer(decoding->layer.weights));
    return decoding;
  }
  CudaMlaDecoder& decoder() { return on->decoder(); }
  std::vector<float> Hidden(const Step& step) { return HiddenOf(step, decoder().step_positions(), layer.shape.hidden); }
  StatusOr<std::vector<float>> Run(const Step& step) {
    TESSERA_RETURN_IF_ERROR(decoder().BeginStep(step));
    const std::vector<float> hidden = Hidden(step);
    std::vector<float> out(hidden.size(), NAN);
    TESSERA_RETURN_IF_ERROR(on->Attend(0, hidden, out));
    return out;
  }

  RandomLayer layer{TestShape(7), 4};
  std::unique_ptr<OnGpu> on;
};

class CudaLatentSteps : public testing::GpuTest {};

TEST_F(CudaLatentSteps, AForkThatDivergesDoesNotTouchItsParent) {
  for (const DecodeMethod method : AllDecodeMethods()) {
    SCOPED_TRACE(std::string(Name(method)));
    std::vector<float> parent[2];  // with and without a fork
    for (const bool forks : {false, true}) {
      const auto decoding = Decoding::Create(gpu(), SmallGpuOptions(method));
      ASSERT_TRUE(decoding.ok()) << decoding.status();
      CudaMlaDecoder& decoder = (*decoding)->decoder();
      const SequenceId a = decoder.Start();
      ASSERT_EQ((*decoding)->Run({{a, 6}}).status(), absl::OkStatus());
      if (forks) {
        const auto child = decoder.Fork(a, 5);
        ASSERT_TRUE(child.ok()) << child.status();
        ASSERT_EQ((*decoding)->Run({{*child, 3}}).status(), absl::OkStatus());
        ASSERT_EQ(decoder.Truncate(*child, 6), absl::OkStatus());
        ASSERT_EQ((*decoding)->Run({{*child, 2}}).status(), absl::OkStatus());
      }
      const auto last = (*decoding)->Run({{a, 3}});
      ASSERT_TRUE(last.ok()) << last.status();
      parent[forks] = *last;
    }
    EXPECT_EQ(parent[0], parent[1]);
    EXPECT_TRUE(SameEverywhere(gpu(), parent[0]));
  }
}

// One layer of a step, recorded once, serves the steps that follow with as many rows.
TEST_F(CudaLatentSteps, AGraphReplaysEveryStep) {
  for (const DecodeMethod method : AllDecodeMethods()) {
    SCOPED_TRACE(std::string(Name(method)));
    std::vector<std::vector<float>> results[2];
    for (const bool captured : {false, true}) {
      const auto decoding = Decoding::Create(gpu(), SmallGpuOptions(method));
      ASSERT_TRUE(decoding.ok()) << decoding.status();
      CudaMlaDecoder& decoder = (*decoding)->decoder();
      const SequenceId a = decoder.Start(), b = decoder.Start();
      ASSERT_EQ((*decoding)->Run({{a, 6}, {b, 2}}).status(), absl::OkStatus());
      CudaGraph graph;
      for (int i = 0; i < 4; ++i) {
        const Step step = {{b, 1}, {a, 1}};
        if (!captured || i == 0) {
          const auto out = (*decoding)->Run(step);
          ASSERT_TRUE(out.ok()) << out.status();
          results[captured].push_back(*out);
          continue;
        }
        ASSERT_EQ(decoder.BeginStep(step), absl::OkStatus());
        const std::vector<float> hidden = (*decoding)->Hidden(step);
        std::vector<float> out(hidden.size(), NAN);
        ASSERT_EQ((*decoding)->on->AttendByGraph(0, hidden, out, graph), absl::OkStatus());
        results[captured].push_back(out);
      }
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

TEST_F(CudaLatentSteps, OneRankOutOfPagesRefusesEverywhereAndHarmsNobody) {
  for (const DecodeMethod method : AllDecodeMethods()) {
    SCOPED_TRACE(std::string(Name(method)));
    std::vector<std::vector<float>> later[2];
    for (const bool refused : {false, true}) {
      const auto decoding = Decoding::Create(gpu(), SmallGpuOptions(method));
      ASSERT_TRUE(decoding.ok()) << decoding.status();
      CudaMlaDecoder& decoder = (*decoding)->decoder();
      const SequenceId a = decoder.Start(), b = decoder.Start(), c = decoder.Start();
      ASSERT_EQ((*decoding)->Run({{a, 5}, {b, 3}}).status(), absl::OkStatus());
      if (refused) {
        // Sharded by tokens over P ranks, c needs six pages of rank 0 and five of the others; a and b have two of rank
        // 0's. Otherwise every rank is short.
        const int64_t tokens = std::min<int64_t>(80, 24 * (gpu().control->size() - 1) + 20 - 3);
        const int64_t before = decoder.cache().free_pages();
        const Status short_of = decoder.BeginStep(Step{{a, 1}, {c, tokens}});
        EXPECT_EQ(short_of.code(), absl::StatusCode::kResourceExhausted) << short_of;
        EXPECT_NE(short_of.message().find("cache: appending needs"), std::string::npos) << short_of;
        EXPECT_EQ(decoder.tokens(a), 5);
        EXPECT_EQ(decoder.tokens(c), 0);
        EXPECT_EQ(decoder.cache().free_pages(), before);
        EXPECT_EQ(decoder.Attend(0, nullptr, nullptr).message(), "Attend needs BeginStep first");
      }
      for (int i = 0; i < 2; ++i) {
        const auto step = (*decoding)->Run({{b, 2}, {a, 1}, {c, 1}});
        ASSERT_TRUE(step.ok()) << step.status();
        later[refused].push_back(*step);
      }
    }
    EXPECT_EQ(later[0], later[1]);
  }
}

TEST_F(CudaLatentSteps, SayWhatIsWrong) {
  const auto creating = [&](const CudaMlaDecoderOptions& options) { return Decoding::Create(gpu(), options).status(); };
  CudaMlaDecoderOptions options = SmallGpuOptions(DecodeMethod::kGatherQuery);
  options.decoder.kernel = "nonsense";
  EXPECT_NE(creating(options).message().find("\"nonsense\""), std::string::npos) << creating(options);
  options.decoder.kernel = "";
  options.decoder.cache_dtype = DType::kFloat32;
  EXPECT_EQ(creating(options).code(), absl::StatusCode::kNotFound) << creating(options);
  options.decoder.cache_dtype = DType::kBFloat16;
  options.max_sequences = 0;
  EXPECT_NE(creating(options).message().find("max_sequences is 0"), std::string::npos) << creating(options);
  options.max_sequences = 2;
  options.decoder.compute = DType::kFloat64;
  EXPECT_EQ(creating(options).message(), "cuda projections: compute is fp64; it must be fp32, bf16 or fp16");
  options.decoder.compute = DType::kFloat16;
  options.decoder.pages = int64_t{1} << 30;
  const Status too_large = creating(options);
  EXPECT_EQ(too_large.code(), absl::StatusCode::kResourceExhausted) << too_large;
  options.decoder.pages = 6;

  const auto decoding = Decoding::Create(gpu(), options);
  ASSERT_TRUE(decoding.ok()) << decoding.status();
  CudaMlaDecoder& decoder = (*decoding)->decoder();
  const SequenceId a = decoder.Start(), b = decoder.Start(), c = decoder.Start();
  EXPECT_EQ(decoder.BeginStep(Step{{a, 1}, {b, 1}, {c, 0}}).message(), "the step has 3 sequences; max_sequences is 2");
  EXPECT_EQ(decoder.BeginStep(Step{{a, 81}}).message(), "sequence 0 has 81 new tokens; max_tokens_per_sequence is 80");
  EXPECT_EQ(decoder.BeginStep(Step{{7, 1}}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(decoder.Attend(1, nullptr, nullptr).message(), "layer 1: there are 1");
  EXPECT_EQ(decoder.Attend(0, nullptr, nullptr).message(), "Attend needs BeginStep first");
  EXPECT_EQ(decoder.AddLayer((*decoding)->layer.weights).message(), "the decoder has its 1 layers already");
  const auto nothing = (*decoding)->Run({});
  EXPECT_TRUE(nothing.ok() && nothing->empty()) << nothing.status();
  EXPECT_EQ(decoder.Synchronize(), absl::OkStatus());
}

}  // namespace
}  // namespace tessera::latent_test
