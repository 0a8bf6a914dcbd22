// Latent decoding over threads as ranks: random histories of every method against fp64.
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "collectives/inproc/world.h"
#include "tests/dist/latent/latent_case.h"
#include "tests/dist/latent/run_events.h"
#include "tests/support/problems.h"

namespace tessera::latent_test {
namespace {

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

using Outputs = std::vector<std::vector<float>>;  // per rank

Status RunAll(int ranks, const LatentCase& problem, const MlaDecoderOptions& options, Outputs& outputs,
              PrefillResult* prefill = nullptr, const InprocOptions& world = {}) {
  outputs.assign(ranks, {});
  return RunRanks(ranks, world, [&](Communicator& comm) {
    return RunLatentRank(comm, problem, options, outputs[comm.rank()], prefill);
  });
}

// Steps of all ranks against fp64, with the error of one rank as the yardstick.
void ExpectAccurate(int ranks, const LatentCase& problem, const InprocOptions& world = {}) {
  Outputs outputs, plain;
  ASSERT_EQ(RunAll(ranks, problem, problem.options, outputs, nullptr, world), absl::OkStatus());
  const MlaDecoderOptions one = OneRank(problem.options);
  ASSERT_EQ(RunAll(1, problem, one, plain), absl::OkStatus());
  const auto exact = ExactSteps(problem, problem.options), whole = ExactSteps(problem, one);
  ASSERT_TRUE(exact.ok() && whole.ok()) << exact.status() << whole.status();
  EXPECT_EQ(Compare(ErrorsOf(outputs[0], *exact), ErrorsOf(plain[0], *whole), problem.options), "");
  for (int rank = 1; rank < ranks; ++rank) EXPECT_TRUE(SameBits(outputs[rank], outputs[0])) << "rank " << rank;
}

class RandomHistory : public ::testing::TestWithParam<int> {};

TEST_P(RandomHistory, EveryMethodMatchesFp64AndHoldsWhatItShould) {
  const int ranks = GetParam();
  constexpr int kCases = testing::Problems(6);  // times 5 methods and 8 rank counts
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (int i = 0; i < kCases; ++i) {
      const std::string name = absl::StrCat("latent/inproc/", std::string(Name(method)), "/", ranks, "/", i);
      auto generator = testing::GeneratorFor(name);
      const LatentCase problem = RandomLatentCase(method, ranks, generator);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      InprocOptions world;
      world.eager = i % 2 == 0;  // rendezvous semantics every other time
      ExpectAccurate(ranks, problem, world);
      if (i > 0) continue;
      Outputs first, second;
      ASSERT_EQ(RunAll(ranks, problem, problem.options, first), absl::OkStatus());
      ASSERT_EQ(RunAll(ranks, problem, problem.options, second, nullptr, world), absl::OkStatus());
      for (int rank = 0; rank < ranks; ++rank) EXPECT_TRUE(SameBits(first[rank], second[rank])) << "rank " << rank;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, RandomHistory, ::testing::Range(1, 9));

class RandomPrefill : public ::testing::TestWithParam<int> {};

TEST_P(RandomPrefill, EveryStrategyMatchesFp64AndEveryMethodContinues) {
  const int ranks = GetParam();
  constexpr int kCases = testing::Problems(3);  // times 5 strategies and 5 rank counts; methods in turn
  int turn = ranks;
  for (const char* strategy : {"zigzag", "ring", "allgather", "tree", "striped"}) {
    for (int i = 0; i < kCases; ++i) {
      const DecodeMethod method = AllDecodeMethods()[turn++ % 5];
      const std::string name =
          absl::StrCat("latent/prefill/", strategy, "/", std::string(Name(method)), "/", ranks, "/", i);
      auto generator = testing::GeneratorFor(name);
      LatentCase problem = RandomPrefilledCase(method, ranks, strategy, generator);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      ExpectAccurate(ranks, problem);

      Outputs outputs;
      PrefillResult result = EmptyPrefill(problem), plain = EmptyPrefill(problem);
      ASSERT_EQ(RunAll(ranks, problem, problem.options, outputs, &result), absl::OkStatus());
      ASSERT_EQ(RunAll(1, problem, OneRank(problem.options), outputs, &plain), absl::OkStatus());
      const auto exact = ExactPrefill(problem), rows = ExactCacheRows(problem);
      ASSERT_TRUE(exact.ok() && rows.ok()) << exact.status() << rows.status();
      EXPECT_EQ(Compare(ErrorsOf(result.output, *exact), ErrorsOf(plain.output, *exact), problem.options), "");
      EXPECT_EQ(Compare(ErrorsOf(result.cache_rows, *rows), ErrorsOf(plain.cache_rows, *rows), problem.options), "");
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, RandomPrefill, ::testing::Range(1, 6));

// A decoder of one layer whose steps take random hidden states by sequence and position, whatever else happens.
class Decoding {
 public:
  static StatusOr<std::unique_ptr<Decoding>> Create(Communicator& comm, const MlaDecoderOptions& options) {
    auto decoding = std::unique_ptr<Decoding>(new Decoding);
    TESSERA_ASSIGN_OR_RETURN(decoding->decoder, MlaDecoder::Create(comm, decoding->layer.shape, options));
    TESSERA_RETURN_IF_ERROR(decoding->decoder->AddLayer(decoding->layer.weights));
    return decoding;
  }
  StatusOr<std::vector<float>> Step(const std::vector<StepTokens>& step) {
    TESSERA_RETURN_IF_ERROR(decoder->BeginStep(step));
    const std::vector<float> hidden = HiddenOf(step, decoder->step_positions(), layer.shape.hidden);
    std::vector<float> out(hidden.size(), NAN);
    TESSERA_RETURN_IF_ERROR(decoder->Attend(0, hidden.data(), out.data()));
    return out;
  }

  RandomLayer layer{TestShape(), 4};
  std::unique_ptr<MlaDecoder> decoder;
};

TEST(LatentDecoder, OneRankOutOfPagesRefusesEverywhereAndHarmsNobody) {
  for (const DecodeMethod method : AllDecodeMethods()) {
    SCOPED_TRACE(std::string(Name(method)));
    std::vector<std::string> errors(3);
    std::vector<std::vector<float>> later[2];
    for (const bool refused : {false, true}) {
      later[refused].resize(3);
      const Status status = RunRanks(3, {}, [&](Communicator& comm) -> Status {
        TESSERA_ASSIGN_OR_RETURN(const auto decoding, Decoding::Create(comm, SmallOptions(method)));
        MlaDecoder& decoder = *decoding->decoder;
        const SequenceId a = decoder.Start(), b = decoder.Start(), c = decoder.Start();
        TESSERA_RETURN_IF_ERROR(decoding->Step({{a, 5}, {b, 3}}).status());
        if (refused) {
          // Sharded by tokens, 63 more tokens need six pages of rank 0 and five of the others, and a and b have two of
          // rank 0's. Otherwise every rank is short.
          const int64_t before = decoder.cache().free_pages();
          const Status short_of = decoding->Step({{a, 1}, {c, 63}}).status();
          EXPECT_EQ(short_of.code(), absl::StatusCode::kResourceExhausted) << short_of;
          errors[comm.rank()] = std::string(short_of.message());
          EXPECT_EQ(decoder.tokens(a), 5);
          EXPECT_EQ(decoder.tokens(c), 0);
          EXPECT_EQ(decoder.cache().free_pages(), before);
        }
        auto& out = later[refused][comm.rank()];
        for (int i = 0; i < 2; ++i) {
          TESSERA_ASSIGN_OR_RETURN(const std::vector<float> step, decoding->Step({{b, 2}, {a, 1}, {c, 1}}));
          out.insert(out.end(), step.begin(), step.end());
        }
        return absl::OkStatus();
      });
      ASSERT_EQ(status, absl::OkStatus());
    }
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_TRUE(SameBits(later[false][rank], later[true][rank])) << "rank " << rank;
      const bool all_short = method == DecodeMethod::kHead || method == DecodeMethod::kTpla;
      const char* const expected = all_short ? "cache: appending needs 16 pages and 3 of 6 are free"
                                             : "rank 0, making room in the cache: cache: appending needs";
      EXPECT_NE(errors[rank].find(expected), std::string::npos) << errors[rank];
    }
  }
}

TEST(LatentDecoder, ATakeOverWithoutRoomStartsNothing) {
  const Status status = RunRanks(3, {}, [&](Communicator& comm) -> Status {
    TESSERA_ASSIGN_OR_RETURN(const auto decoding, Decoding::Create(comm, SmallOptions(DecodeMethod::kTree)));
    MlaDecoder& decoder = *decoding->decoder;
    const SequenceId a = decoder.Start();
    TESSERA_RETURN_IF_ERROR(decoding->Step({{a, 5}}).status());
    const auto take_over = [&](int64_t tokens) {
      const Layout layout = Layout::Zigzag(tokens, comm.size());
      std::vector<std::byte> bytes(layout.rows(comm.rank()) * decoding->layer.shape.cache_width() * 2);
      const DenseRows rows{ConstTensorView::Dense(bytes.data(), DType::kBFloat16, layout.rows(comm.rank()), 1,
                                                  decoding->layer.shape.cache_width()),
                           {}};
      return decoder.TakeOver({layout}, {&rows, 1});
    };
    // Rank 0 would hold six pages of it and has five.
    const int64_t before = decoder.cache().free_pages();
    const auto refused = take_over(62);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
    EXPECT_NE(refused.status().message().find("rank 0"), std::string::npos) << refused.status();
    EXPECT_EQ(decoder.cache().free_pages(), before);
    TESSERA_ASSIGN_OR_RETURN(const auto started, take_over(58));
    EXPECT_EQ(started.size(), 1u);
    EXPECT_EQ(decoder.tokens(started[0]), 58);
    return decoding->Step({{started[0], 1}, {a, 1}}).status();
  });
  EXPECT_EQ(status, absl::OkStatus());
}

TEST(LatentDecoder, AForkThatDivergesDoesNotTouchItsParent) {
  // Parent and child in one decoder, then each as if the other had never been.
  for (const DecodeMethod method : AllDecodeMethods()) {
    SCOPED_TRACE(std::string(Name(method)));
    const Status status = RunRanks(2, {}, [&](Communicator& comm) -> Status {
      std::map<int, std::vector<float>> parent;  // with and without a fork
      for (const int forks : {0, 1}) {
        TESSERA_ASSIGN_OR_RETURN(const auto decoding, Decoding::Create(comm, SmallOptions(method)));
        MlaDecoder& decoder = *decoding->decoder;
        const SequenceId a = decoder.Start();
        TESSERA_RETURN_IF_ERROR(decoding->Step({{a, 6}}).status());
        if (forks > 0) {
          TESSERA_ASSIGN_OR_RETURN(const SequenceId child, decoder.Fork(a, 5));
          TESSERA_RETURN_IF_ERROR(decoding->Step({{child, 3}}).status());
          TESSERA_RETURN_IF_ERROR(decoder.Truncate(child, 6));
          TESSERA_RETURN_IF_ERROR(decoding->Step({{child, 2}}).status());
        }
        TESSERA_ASSIGN_OR_RETURN(parent[forks], decoding->Step({{a, 3}}));
      }
      EXPECT_TRUE(SameBits(parent[0], parent[1]));
      return absl::OkStatus();
    });
    EXPECT_EQ(status, absl::OkStatus());
  }
}

TEST(LatentDecoderBadInput, StepsSayWhatIsWrongAndChangeNothing) {
  const Status status = RunRanks(2, {}, [&](Communicator& comm) -> Status {
    MlaDecoderOptions options = SmallOptions(DecodeMethod::kGatherQuery);
    options.max_positions = 12;
    TESSERA_ASSIGN_OR_RETURN(const auto decoding, Decoding::Create(comm, options));
    MlaDecoder& decoder = *decoding->decoder;
    const SequenceId a = decoder.Start(), b = decoder.Start();
    const auto refused = [&](const std::vector<StepTokens>& step, absl::StatusCode code, const std::string& text) {
      const Status result = decoder.BeginStep(step);
      EXPECT_EQ(result.code(), code) << result;
      EXPECT_NE(result.message().find(text), std::string::npos) << result;
      EXPECT_EQ(decoder.tokens(a), 0);
      EXPECT_EQ(decoder.cache().free_pages(), options.pages);
    };
    refused({{a, 1}, {7, 1}}, absl::StatusCode::kNotFound, "no sequence 7");
    refused({{a, 1}, {b, 1}, {a, 1}}, absl::StatusCode::kInvalidArgument, "sequence 0 is named twice in one step");
    refused({{a, 2}, {b, -1}}, absl::StatusCode::kInvalidArgument, "tokens -1 < 0");
    refused({{a, 2}, {b, 13}}, absl::StatusCode::kOutOfRange,
            "sequence 1 would have 13 tokens; the model supports 12 positions");
    TESSERA_RETURN_IF_ERROR(decoding->Step({{b, 12}}).status());
    EXPECT_EQ(decoder.BeginStep(std::vector<StepTokens>{{b, 1}}).code(), absl::StatusCode::kOutOfRange);
    TESSERA_RETURN_IF_ERROR(decoding->Step({{b, 0}, {a, 1}}).status());
    TESSERA_ASSIGN_OR_RETURN(const auto nothing, decoding->Step({}));
    EXPECT_TRUE(nothing.empty());

    EXPECT_EQ(decoder.Attend(1, nullptr, nullptr).message(), "layer 1: there are 1");
    EXPECT_EQ(decoder.Fork(b, 13).status().message(), "fork at 13 tokens: sequence 1 has 12");
    EXPECT_EQ(decoder.Truncate(b, 13).message(), "truncate to 13 tokens: sequence 1 has 12");
    EXPECT_EQ(decoder.Truncate(b, -1).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(decoder.Adopt(b, 3).code(), absl::StatusCode::kFailedPrecondition);
    // A step ends when its sequences change: there is nothing left to write to.
    TESSERA_RETURN_IF_ERROR(decoder.BeginStep(std::vector<StepTokens>{{b, 0}, {a, 1}}));
    TESSERA_RETURN_IF_ERROR(decoder.Release(b));
    EXPECT_EQ(decoder.Attend(0, nullptr, nullptr).message(), "Attend needs BeginStep first");
    EXPECT_EQ(decoder.step_rows(), 0);
    TESSERA_RETURN_IF_ERROR(decoder.Truncate(a, 0));
    EXPECT_EQ(decoder.Release(b).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(decoder.Truncate(b, 0).code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(decoder.Fork(b, 0).status().code(), absl::StatusCode::kNotFound);
    EXPECT_EQ(decoder.Adopt(b, 0).code(), absl::StatusCode::kNotFound);
    refused({{b, 1}}, absl::StatusCode::kNotFound, "no sequence 1");
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
}

TEST(LatentDecoderBadInput, LayersAndOptionsThatDoNotFit) {
  const Status status = RunRanks(4, {}, [&](Communicator& comm) -> Status {
    const RandomLayer layer(TestShape(), 4);
    MlaDecoderOptions options = SmallOptions(DecodeMethod::kTpla);
    const auto creating = [&](const MlaShape& shape) {
      return std::string(MlaDecoder::Create(comm, shape, options).status().message());
    };
    options.groups = 3;
    EXPECT_NE(creating(layer.shape)
                  .find("groups is 3; it must be one of 1, 2, 4: it divides 4 ranks and the latent "
                        "width 8"),
              std::string::npos)
        << creating(layer.shape);
    MlaShape odd = layer.shape;
    odd.latent = 6;
    options.groups = 4;
    EXPECT_NE(creating(odd).find("must be one of 1, 2: it divides 4 ranks and the latent width 6"), std::string::npos)
        << creating(odd);
    odd.rope = 3;
    EXPECT_NE(creating(odd).find("rope"), std::string::npos) << creating(odd);
    options.groups = 2;
    options.page_tokens = 0;
    EXPECT_NE(creating(layer.shape).find("page_tokens"), std::string::npos) << creating(layer.shape);
    options.page_tokens = 4;
    options.kernel = "nonsense";
    EXPECT_NE(creating(layer.shape).find("\"nonsense\""), std::string::npos) << creating(layer.shape);
    options.kernel = "";
    options.max_positions = -1;
    EXPECT_EQ(creating(layer.shape), "max_positions is -1; it must be at least 1");
    options.max_positions = 100;
    TESSERA_ASSIGN_OR_RETURN(const auto decoder, MlaDecoder::Create(comm, layer.shape, options));
    const auto adding = [&](const TplaFactors& factors) {
      return std::string(decoder->AddLayer(layer.weights, factors).message());
    };
    EXPECT_EQ(adding({.softmax_multiplier = {1, 1, 1}, .energy_share = {}}),
              "softmax_multiplier has 3 entries; there are 2 latent groups");
    EXPECT_EQ(adding({.softmax_multiplier = {}, .energy_share = {1.0}}),
              "energy_share has 1 entries; there are 2 latent groups");
    EXPECT_EQ(adding({.softmax_multiplier = {}, .energy_share = {-0.5, 1.0}}),
              "energy_share -0.5: allowed are values in [0, 1]");
    EXPECT_EQ(adding({.softmax_multiplier = {1.0f, NAN}, .energy_share = {}}), "softmax_multiplier is not finite");
    MlaWeights wrong = layer.weights;
    wrong.kv_up.rows -= 1;
    EXPECT_NE(std::string(decoder->AddLayer(wrong).message()).find("kv_up"), std::string::npos);
    EXPECT_EQ(adding({}), "");
    EXPECT_EQ(adding({}), "the decoder has its 1 layers already");
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
}

TEST(LatentPrefillBadInput, SaysWhatIsMissing) {
  const Status status = RunRanks(2, {}, [&](Communicator& comm) -> Status {
    const RandomLayer layer(TestShape(), 4);
    MlaPrefillOptions options;
    EXPECT_EQ(MlaPrefill::Create(comm, layer.shape, options).status().message(),
              "max_positions is 0; it must be at least 1");
    options.max_positions = 3;
    TESSERA_ASSIGN_OR_RETURN(const auto prefill, MlaPrefill::Create(comm, layer.shape, options));
    std::vector<float> hidden(4 * layer.shape.hidden), rows(4 * layer.shape.cache_width());
    std::vector<int64_t> positions = {0, 1};
    const auto attend = [&](int index) {
      return std::string(prefill->Attend(index, hidden.data(), positions, hidden.data(), rows.data()).message());
    };
    EXPECT_EQ(attend(0), "Attend needs UsePlan first");
    TESSERA_ASSIGN_OR_RETURN(const Mask causal, Mask::Causal(4, 4));
    PlanOptions planning;
    planning.strategy = "ring";
    planning.ranks = 2;
    TESSERA_ASSIGN_OR_RETURN(PlanSpec spec,
                             MakePlanSpec(MlaProblem(layer.shape, 4, causal, DType::kFloat32), planning));
    TESSERA_RETURN_IF_ERROR(prefill->UsePlan(spec));
    EXPECT_EQ(attend(0), "layer 0: there are 0");
    TESSERA_RETURN_IF_ERROR(prefill->AddLayer(layer.weights));
    EXPECT_EQ(attend(0), "");
    positions = {0, 3};
    EXPECT_EQ(attend(0), "position 3: the model supports positions 0 to 2");
    positions = {-1, 0};
    EXPECT_EQ(attend(0), "position -1: the model supports positions 0 to 2");
    positions = {0, 1, 2};
    EXPECT_EQ(attend(0), "positions has 3 entries; the plan gives this rank 2 rows");
    spec.key_layout = Layout::Striped(4, 2);
    EXPECT_NE(prefill->UsePlan(spec).message().find("lays out queries and keys differently"), std::string::npos);
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
}

}  // namespace
}  // namespace tessera::latent_test
