// Distributed decode over threads as ranks: random steps, every method, 1 to 8 ranks.
#include <gtest/gtest.h>

#include <regex>

#include "collectives/inproc/world.h"
#include "partition/cost.h"
#include "tests/support/decode_case.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

using testing::DecodeCase;
using testing::DecodeResult;

class RandomDecode : public ::testing::TestWithParam<int> {};

TEST_P(RandomDecode, EveryMethodMatchesFp64AndCountsItsBytes) {
  const int ranks = GetParam();
  constexpr int kProblems = testing::Problems(10);  // times 5 methods and 8 rank counts: 400 problems
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (int i = 0; i < kProblems; ++i) {
      const std::string name = absl::StrCat("decode/inproc/", std::string(Name(method)), "/", ranks, "/", i);
      auto generator = testing::GeneratorFor(name);
      const DecodeCase problem = testing::RandomDecodeCase(method, ranks, generator);
      SCOPED_TRACE(absl::StrCat(name, ": ", problem.ToString()));
      std::vector<DecodeResult> results(ranks);
      InprocOptions options;
      options.eager = i % 2 == 0;  // rendezvous semantics every other time
      if (i % 5 == 0) options.longest_delay = std::chrono::microseconds(200);
      const Status status = RunRanks(ranks, options, [&](Communicator& comm) {
        return testing::RunDecodeRank(comm, problem, results[comm.rank()]);
      });
      ASSERT_EQ(status, absl::OkStatus());
      int64_t received = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        EXPECT_EQ(testing::Judge(problem, rank, results[rank]), "") << "rank " << rank;
        received += results[rank].stats.traffic.bytes_received;
      }
      EXPECT_EQ(received, PredictedBytes(problem.spec));
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, RandomDecode, ::testing::Range(1, 9));

// How queries come to a rank does not show in what it computes.
TEST(Decode, GatheredAndReplicatedQueriesGiveTheSameBits) {
  auto generator = testing::GeneratorFor("decode/queries");
  DecodeCase problem;
  while (problem.rows() == 0) problem = testing::RandomDecodeCase(DecodeMethod::kReplicatedQuery, 3, generator);
  std::vector<DecodeResult> replicated(3), gathered(3);
  ASSERT_EQ(
      RunRanks(3, {},
               [&](Communicator& comm) { return testing::RunDecodeRank(comm, problem, replicated[comm.rank()]); }),
      absl::OkStatus());
  problem.spec.method = DecodeMethod::kGatherQuery;
  ASSERT_EQ(
      RunRanks(3, {}, [&](Communicator& comm) { return testing::RunDecodeRank(comm, problem, gathered[comm.rank()]); }),
      absl::OkStatus());
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(replicated[rank].output, gathered[rank].output);
    EXPECT_EQ(replicated[rank].lse, gathered[rank].lse);
  }
}

DecodeSpec SmallSpec(DecodeMethod method, int ranks) {
  DecodeSpec spec;
  spec.method = method;
  spec.ranks = ranks;
  spec.heads = 4;
  spec.qk_width = 8;
  spec.v_width = 6;
  return spec;
}

TEST(DecodeAgreement, ARankWithAnotherSpecOrScaleIsNamedByEveryone) {
  for (const bool scale : {false, true}) {
    std::vector<std::string> errors(4);
    const Status status = RunRanks(4, {}, [&](Communicator& comm) -> Status {
      DecodeSpec spec = SmallSpec(DecodeMethod::kTree, 4);
      DecodeOptions options;
      if (comm.rank() == 2) (scale ? options.scale : options.soft_cap) = 3.0f;
      if (comm.rank() == 2 && !scale) spec.heads = 5;
      errors[comm.rank()] = DecodeAttention::Create(comm, spec, options).status().ToString();
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    for (const std::string& error : errors) {
      EXPECT_NE(error.find(scale ? "disagree on the decode scale and soft cap: rank 2 differs"
                                 : "disagree on the decode plan: rank 2 differs"),
                std::string::npos)
          << error;
    }
  }
}

TEST(DecodeBadInput, CreateRefusesWhatNoRankCanServe) {
  const Status status = RunRanks(2, {}, [&](Communicator& comm) -> Status {
    EXPECT_EQ(DecodeAttention::Create(comm, SmallSpec(DecodeMethod::kTree, 3), {}).status().message(),
              "the decode plan is for 3 ranks and the communicator has 2");
    DecodeSpec tpla = SmallSpec(DecodeMethod::kTpla, 2);
    tpla.groups = 3;
    EXPECT_EQ(DecodeAttention::Create(comm, tpla, {}).status().message(),
              "decode: groups is 3, which does not divide 2 ranks; groups that do: 1, 2");
    DecodeOptions options;
    options.kernel = comm.rank() == 1 ? "nonsense" : "";
    const std::string error(
        DecodeAttention::Create(comm, SmallSpec(DecodeMethod::kTree, 2), options).status().message());
    EXPECT_NE(error.find("rank 1, preparing to decode: no decode kernel called \"nonsense\""), std::string::npos)
        << error;
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST(DecodeBadInput, RunNamesTheTensorTheValueAndWhatIsNeeded) {
  const Status status = RunRanks(1, {}, [&](Communicator& comm) -> Status {
    TESSERA_ASSIGN_OR_RETURN(auto decode, DecodeAttention::Create(comm, SmallSpec(DecodeMethod::kHead, 1), {}));
    std::vector<float> query(2 * 4 * 8), output(2 * 4 * 6), lse(2 * 4), pool(3 * 8);
    const auto q = TensorView::Dense(query.data(), DType::kBFloat16, 2, 4, 8);
    const auto o = TensorView::Dense(output.data(), DType::kFloat32, 2, 4, 6);
    const auto l = TensorView::Dense(lse.data(), DType::kFloat32, 2, 4, 1);
    CacheLayer cache;
    cache.key = cache.value = reinterpret_cast<const std::byte*>(pool.data());
    cache.qk_width = 8;
    cache.v_width = 6;
    cache.page_tokens = 3;
    cache.page_stride = 48;
    cache.key_row_stride = cache.value_row_stride = 16;
    cache.key_head_stride = cache.value_head_stride = 16;
    const std::vector<int32_t> pages = {0};
    const std::vector<Range> visible = {{0, 2}, {0, 3}}, beyond = {{0, 2}, {0, 4}};
    const std::vector<DecodeSequence> sequences = {{0, pages, visible}};
    const auto run = [&](const TensorView& a, const CacheLayer& c, std::span<const DecodeSequence> s,
                         const TensorView& b,
                         const TensorView& d) { return std::string(decode->Run(a, c, s, b, d).message()); };
    EXPECT_EQ(run(q, cache, sequences, o, l), "");
    auto bad = q;
    bad.heads = 3;
    EXPECT_EQ(run(bad, cache, sequences, o, l), "query: heads is 3; this rank's plan needs 4");
    bad = q;
    bad.dtype = DType::kFloat16;
    EXPECT_EQ(run(bad, cache, sequences, o, l), "query: dtype is fp16; this rank's plan needs bf16");
    bad = q;
    bad.row_stride = 40;
    EXPECT_EQ(run(bad, cache, sequences, o, l), "query: strides are 40 and 8; the tensor must be dense");
    bad = o;
    bad.width = 5;
    EXPECT_EQ(run(q, cache, sequences, bad, l), "output: width is 5; this rank's plan needs 6");
    bad = l;
    bad.rows = 1;
    EXPECT_EQ(run(q, cache, sequences, o, bad), "lse: rows is 1; this rank's plan needs 2");
    CacheLayer other = cache;
    other.kv_heads = 2;
    EXPECT_EQ(run(q, other, sequences, o, l), "cache: kv_heads is 2; this rank's plan needs 1");
    other = cache;
    other.qk_width = 9;
    EXPECT_EQ(run(q, other, sequences, o, l), "cache: qk_width is 9; this rank's plan needs 8");
    EXPECT_NE(run(q, cache, {}, o, l).find("sequences: they have 0 query rows and the query tensor 2"),
              std::string::npos);
    const std::vector<DecodeSequence> far = {{0, pages, beyond}};
    EXPECT_NE(run(q, cache, far, o, l).find("sequence 0 sees cache rows [0, 4) of 3"), std::string::npos);
    // Nothing of this has harmed the operator.
    EXPECT_EQ(run(q, cache, sequences, o, l), "");
    EXPECT_EQ(decode->spec().rows, 2);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

// More numbers of rows than plans are kept, twice over.
TEST(Decode, PlansComeAndGoWithTheNumberOfRows) {
  const Status status = RunRanks(3, {}, [&](Communicator& comm) -> Status {
    TESSERA_ASSIGN_OR_RETURN(auto decode, DecodeAttention::Create(comm, SmallSpec(DecodeMethod::kGatherQuery, 3), {}));
    CacheLayer cache;
    cache.qk_width = 8;
    cache.v_width = 6;
    cache.page_tokens = 1;
    const DecodeSpec& spec = decode->spec();
    const int heads = spec.OutputHeads(comm.rank()).size();
    for (int i = 0; i < 80; ++i) {
      const int64_t rows = i % 40;
      std::vector<float> query(rows * heads * 8), output(rows * heads * 6, NAN), lse(rows * heads, NAN);
      const std::vector<Range> nothing(rows);
      const std::vector<DecodeSequence> sequences = {{0, {}, nothing}};
      TESSERA_RETURN_IF_ERROR(decode->Run(TensorView::Dense(query.data(), DType::kBFloat16, rows, heads, 8), cache,
                                          sequences, TensorView::Dense(output.data(), DType::kFloat32, rows, heads, 6),
                                          TensorView::Dense(lse.data(), DType::kFloat32, rows, heads, 1)));
      EXPECT_EQ(decode->program().slots[kDecodeQuerySlot].rows, rows);
      EXPECT_EQ(output, std::vector<float>(output.size(), 0.0f));
      EXPECT_EQ(lse, std::vector<float>(lse.size(), -INFINITY));
    }
    return absl::OkStatus();
  });
  EXPECT_EQ(status, absl::OkStatus());
}

TEST(DecodeFaults, ADifferentNumberOfRowsIsAnErrorAndNotAHang) {
  for (const DecodeMethod method : {DecodeMethod::kReplicatedQuery, DecodeMethod::kTree}) {
    InprocOptions options;
    options.deadline = std::chrono::milliseconds(2000);
    const Status status = RunRanks(3, options, [&](Communicator& comm) -> Status {
      TESSERA_ASSIGN_OR_RETURN(auto decode, DecodeAttention::Create(comm, SmallSpec(method, 3), {}));
      const int64_t rows = comm.rank() == 1 ? 2 : 3;
      const DecodeSpec& spec = decode->spec();
      const int queries = spec.QueryHeads(comm.rank()).size(), heads = spec.OutputHeads(comm.rank()).size();
      CacheLayer cache;
      cache.qk_width = 8;
      cache.v_width = 6;
      cache.page_tokens = 1;
      std::vector<float> query(rows * queries * 8), output(rows * heads * 6), lse(rows * heads);
      const std::vector<Range> nothing(rows);
      const std::vector<DecodeSequence> sequences = {{0, {}, nothing}};
      return decode->Run(TensorView::Dense(query.data(), DType::kBFloat16, rows, queries, 8), cache, sequences,
                         TensorView::Dense(output.data(), DType::kFloat32, rows, heads, 6),
                         TensorView::Dense(lse.data(), DType::kFloat32, rows, heads, 1));
    });
    EXPECT_FALSE(status.ok());
    EXPECT_TRUE(std::regex_search(std::string(status.message()), std::regex("plan step [0-9]+"))) << status;
  }
}

TEST(DecodeFaults, AKilledOrFrozenRankIsNamedWithItsStepAndNobodyHangs) {
  for (const auto kind : {InprocFault::Kind::kKill, InprocFault::Kind::kFreeze}) {
    InprocOptions options;
    options.deadline = std::chrono::milliseconds(2000);
    options.faults = {{kind, 2, 5}};                         // three agreements at creation, then a message or two
    options.longest_delay = std::chrono::milliseconds(900);  // long enough for heartbeats to tell the step
    auto generator = testing::GeneratorFor("decode/faults");
    DecodeCase problem;
    while (problem.rows() == 0) problem = testing::RandomDecodeCase(DecodeMethod::kTree, 4, generator);
    std::vector<std::string> errors(4);
    std::vector<DecodeResult> results(4);
    const Status status = RunRanks(4, options, [&](Communicator& comm) {
      const Status mine = testing::RunDecodeRank(comm, problem, results[comm.rank()]);
      errors[comm.rank()] = mine.ToString();
      return mine;
    });
    EXPECT_FALSE(status.ok());
    for (const int rank : {0, 1, 3}) {
      EXPECT_TRUE(std::regex_search(errors[rank], std::regex("rank 2 .*last seen in plan step [0-9]+")))
          << rank << ": " << errors[rank];
    }
  }
}

}  // namespace
}  // namespace tessera
