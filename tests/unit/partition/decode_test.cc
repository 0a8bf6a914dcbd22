#include "partition/decode.h"

#include <gtest/gtest.h>

#include <functional>

#include "partition/cost.h"
#include "partition/print.h"
#include "partition/verify.h"

namespace tessera {
namespace {

DecodeSpec Spec(DecodeMethod method, int ranks, int heads) {
  DecodeSpec spec;
  spec.method = method;
  spec.ranks = ranks;
  spec.rows = 3;
  spec.heads = heads;
  spec.qk_width = 24;
  spec.v_width = 16;
  return spec;
}

void ExpectRefusal(const DecodeSpec& spec, const std::string& text) {
  const Status status = Validate(spec);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  EXPECT_NE(std::string(status.message()).find(text), std::string::npos) << status.message() << "\nexpected: " << text;
}

TEST(DecodeMethodNames, RoundTripAndListWhatIsAllowed) {
  for (const DecodeMethod method : AllDecodeMethods()) {
    const auto parsed = ParseDecodeMethod(Name(method));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, method);
  }
  const auto unknown = ParseDecodeMethod("helix");
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(std::string(unknown.status().message()),
            "decode method 'helix' is not known; allowed: head, tpla, gather-query, replicated-query, tree");
}

TEST(DecodeSpec, CutsHeadsWithoutDivisibility) {
  const DecodeSpec head = Spec(DecodeMethod::kHead, 3, 5);
  EXPECT_EQ(head.QueryHeads(0), (HeadRange{0, 1}));
  EXPECT_EQ(head.QueryHeads(1), (HeadRange{1, 3}));
  EXPECT_EQ(head.OutputHeads(2), (HeadRange{3, 5}));
  EXPECT_EQ(head.axis(), CacheAxis::kReplicated);

  DecodeSpec tpla = Spec(DecodeMethod::kTpla, 6, 5);
  tpla.groups = 2;
  EXPECT_EQ(tpla.QueryHeads(1), tpla.QueryHeads(4));
  EXPECT_EQ(tpla.QueryHeads(5), (HeadRange{3, 5}));
  EXPECT_EQ(tpla.axis(), CacheAxis::kLatent);
  EXPECT_EQ(tpla.SlicePeers(5), (std::vector{2, 5}));
  EXPECT_EQ(tpla.SummandHeads(2), (HeadRange{3, 4}));
  EXPECT_EQ(tpla.SummandHeads(5), (HeadRange{4, 5}));
  EXPECT_EQ(tpla.ProjectedHeads(5), tpla.SummandHeads(5));
  EXPECT_TRUE(tpla.SummandHeads(0).empty());  // one head for two slices

  const DecodeSpec replicated = Spec(DecodeMethod::kReplicatedQuery, 8, 2);
  EXPECT_EQ(replicated.QueryHeads(7), (HeadRange{0, 2}));
  EXPECT_EQ(replicated.OutputHeads(7), (HeadRange{1, 2}));
  EXPECT_TRUE(replicated.OutputHeads(6).empty());
  EXPECT_EQ(replicated.axis(), CacheAxis::kSequence);

  const DecodeSpec tree = Spec(DecodeMethod::kTree, 4, 3);
  EXPECT_EQ(tree.QueryHeads(2), (HeadRange{0, 3}));
  EXPECT_EQ(tree.ProjectedHeads(2), tree.QueryHeads(2));
  EXPECT_EQ(tree.SlicePeers(2), std::vector{2});
  EXPECT_EQ(tree.OutputHeads(2), (HeadRange{0, 3}));
}

TEST(DecodeSpec, RefusalsNameFieldValueAndWhatIsAllowed) {
  DecodeSpec spec = Spec(DecodeMethod::kTpla, 6, 8);
  spec.groups = 4;
  ExpectRefusal(spec, "groups is 4, which does not divide 6 ranks; groups that do: 1, 2, 3, 6");
  spec.groups = 2;
  EXPECT_EQ(Validate(spec), absl::OkStatus());
  spec.kv_heads = 2;
  ExpectRefusal(spec, "kv_heads is 2");
  spec = Spec(DecodeMethod::kTree, 4, 8);
  spec.groups = 2;
  ExpectRefusal(spec, "groups is 2 for method tree; it must be 1");
  spec = Spec(DecodeMethod::kHead, 4, 8);
  spec.kv_heads = 3;
  ExpectRefusal(spec, "heads is 8 and kv_heads 3; heads must be a multiple of kv_heads");
  spec.kv_heads = 9;
  ExpectRefusal(spec, "kv_heads is 9; it must be from 1 to 8");
  spec = Spec(DecodeMethod::kHead, 0, 8);
  ExpectRefusal(spec, "ranks is 0; it must be from 1 to 65536");
  spec = Spec(DecodeMethod::kHead, 1, 8);
  spec.rows = -1;
  ExpectRefusal(spec, "rows is -1");
  spec.rows = 0;
  EXPECT_EQ(Validate(spec), absl::OkStatus());
  spec.qk_width = 0;
  ExpectRefusal(spec, "qk_width is 0");
}

// Every method, each with every number of groups that it allows.
std::vector<DecodeSpec> AllSpecs(int ranks, int heads, int64_t rows) {
  std::vector<DecodeSpec> specs;
  for (const DecodeMethod method : AllDecodeMethods()) {
    for (int groups = 1; groups <= (method == DecodeMethod::kTpla ? ranks : 1); ++groups) {
      if (ranks % groups != 0) continue;
      DecodeSpec spec = Spec(method, ranks, heads);
      spec.groups = groups;
      spec.rows = rows;
      specs.push_back(spec);
    }
  }
  return specs;
}

TEST(DecodePlan, VerifiesForEveryMethodRanksHeadsAndRows) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 7, 8, 12, 17}) {
    for (const int heads : {1, 3, 5, 16}) {
      for (const int64_t rows : {0, 1, 3}) {
        for (const DecodeSpec& spec : AllSpecs(ranks, heads, rows)) {
          const DecodePlan plan = BuildDecodePlan(spec);
          EXPECT_EQ(Verify(plan), absl::OkStatus()) << ToString(spec);
          const RankCost total = CountPlan(plan).Total();
          EXPECT_EQ(total.bytes_received, PredictedBytes(spec)) << ToString(spec);
          EXPECT_EQ(total.bytes_sent, PredictedBytes(spec)) << ToString(spec);
        }
      }
    }
  }
}

TEST(DecodePlan, NothingMovesWhenHeadsOrLatentColumnsAreSharded) {
  for (const DecodeMethod method : {DecodeMethod::kHead, DecodeMethod::kTpla}) {
    const DecodePlan plan = BuildDecodePlan(Spec(method, 4, 6));
    for (const RankProgram& program : plan.programs) {
      ASSERT_EQ(program.steps.size(), 1u);
      EXPECT_EQ(program.SlotBytes(), 0);
    }
  }
}

void Erase(RankProgram& program, StepId step) {
  program.steps.erase(program.steps.begin() + step);
  for (Step& other : program.steps) {
    std::erase(other.after, step);
    for (StepId& after : other.after) after -= after > step;
  }
}
void Repeat(RankProgram& program, StepId step) {
  for (Step& other : program.steps) {
    for (StepId& after : other.after) after += after >= step;
  }
  Step copy = program.steps[step];
  std::erase(copy.after, step + 1);
  program.steps.insert(program.steps.begin() + step, copy);
  program.steps[step + 1].after.push_back(step);
}
template <typename Body>
Body& Only(RankProgram& program) {
  for (Step& step : program.steps) {
    if (auto* body = std::get_if<Body>(&step.body)) return *body;
  }
  static Body none;
  ADD_FAILURE() << "the program has no such step";
  return none;
}

TEST(DecodePlan, NoStepCanBeDroppedOrRepeated) {
  for (const int ranks : {2, 3, 5}) {
    for (const DecodeSpec& spec : AllSpecs(ranks, 5, 2)) {
      const DecodePlan plan = BuildDecodePlan(spec);
      for (int rank = 0; rank < ranks; ++rank) {
        for (StepId step = 0; step < static_cast<StepId>(plan.programs[rank].steps.size()); ++step) {
          DecodePlan less = plan, more = plan;
          Erase(less.programs[rank], step);
          Repeat(more.programs[rank], step);
          const std::string what = absl::StrCat(ToString(spec), ": rank ", rank, " step ", step);
          EXPECT_FALSE(Verify(less).ok()) << what << " dropped";
          EXPECT_FALSE(Verify(more).ok()) << what << " repeated";
        }
      }
    }
  }
}

TEST(DecodePlan, MutationsAreNamed) {
  struct Defect {
    DecodeMethod method;
    const char* error;
    std::function<void(DecodePlan&)> make;
  };
  const Defect defects[] = {
      {DecodeMethod::kGatherQuery, "structure: 3 programs for 4 ranks", [](DecodePlan& p) { p.programs.pop_back(); }},
      {DecodeMethod::kHead, "structure: rank 1 slot 1 must be the external partial_output with 3 rows and heads [1, 2)",
       [](DecodePlan& p) {
         p.programs[1].slots[1].heads = {0, 3};
       }},
      {DecodeMethod::kHead, "attends to the cache a second time",
       [](DecodePlan& p) { p.programs[1].steps.push_back(p.programs[1].steps[0]); }},
      {DecodeMethod::kHead, "is no step of decoding",
       [](DecodePlan& p) {
         p.programs[1].steps.push_back({ClearStep{1, 2, {0, 3}}, {}});
       }},
      {DecodeMethod::kHead, "attends heads [3, 4) but its slots have heads [3, 5)",
       [](DecodePlan& p) {
         Only<AttendCacheStep>(p.programs[3]).heads = {3, 4};
       }},
      {DecodeMethod::kHead, "contents: rank 2 query tokens 0+3 heads [2, 3): partial_output is never written",
       [](DecodePlan& p) { p.programs[2].steps.clear(); }},
      // The programs of gather-query under a spec whose ranks each hold all tokens, and the other way round.
      {DecodeMethod::kGatherQuery, "is made of the cache of another rank",
       [](DecodePlan& p) { p.spec.method = DecodeMethod::kHead; }},
      {DecodeMethod::kHead, "coverage: row 0 and cache part 1 of heads [0, 1) never reach the partial_output",
       [](DecodePlan& p) { p.spec.method = DecodeMethod::kGatherQuery; }},
      {DecodeMethod::kReplicatedQuery, "coverage: query tokens 0+3 of heads [0, 1) are merged more than once",
       [](DecodePlan& p) {
         auto& rows = Only<MergeStep>(p.programs[0]).rows;
         rows.push_back(rows.back());
       }},
      {DecodeMethod::kReplicatedQuery, "coverage: row 0 and cache part 3 of heads [0, 1) never reach",
       [](DecodePlan& p) { Only<MergeStep>(p.programs[0]).rows.pop_back(); }},
      // Rank 1 merges what rank 2 sent with row 0 in the place of row 1.
      {DecodeMethod::kReplicatedQuery, "contents: rank 1",
       [](DecodePlan& p) {
         Only<MergeStep>(p.programs[1]).rows[1] = {3, 1, 2};
       }},
      {DecodeMethod::kReplicatedQuery,
       "messages: rank 2 step 1 (exchange) has 192 bytes from rank 0 to rank 2 that the other side lacks",
       [](DecodePlan& p) {
         std::erase_if(Only<ExchangeStep>(p.programs[0]).sends,
                       [](const ExchangePart& part) { return part.peer == 2; });
       }},
      // Heads of rank 2 go to rank 0, one head either way.
      {DecodeMethod::kReplicatedQuery, "contents: rank 0 step 1 (exchange) puts 3 rows of heads [3, 4) of rank 1 into",
       [](DecodePlan& p) {
         for (ExchangePart& part : Only<ExchangeStep>(p.programs[1]).sends) {
           if (part.peer == 0) part.region.heads = {3, 4};
         }
       }},
      {DecodeMethod::kGatherQuery, "lifetimes: rank 3",
       [](DecodePlan& p) {
         for (Step& step : p.programs[3].steps) step.after.clear();
       }},
      {DecodeMethod::kTree, "lifetimes: rank 1",
       [](DecodePlan& p) {
         for (Step& step : p.programs[1].steps) step.after.clear();
       }},
      {DecodeMethod::kTree, "messages: rank 0 step 1 (receive) with tag 524288 has no send on rank 1",
       [](DecodePlan& p) { Only<SendStep>(p.programs[1]).peer = 2; }},
      // Rank 0 waits for the partials of rank 1, which waits for the result first.
      {DecodeMethod::kTree, "progress: deadlock",
       [](DecodePlan& p) {
         for (Step& step : p.programs[1].steps) {
           if (!std::holds_alternative<SendStep>(step.body)) continue;
           step.after = {0};
         }
         auto& steps = p.programs[1].steps;
         std::rotate(steps.begin() + 1, steps.begin() + 3, steps.end());
         for (size_t i = 1; i < steps.size(); ++i) steps[i].after = {static_cast<StepId>(i) - 1};
       }},
  };
  for (const Defect& defect : defects) {
    DecodePlan plan = BuildDecodePlan(Spec(defect.method, 4, 5));
    ASSERT_EQ(Verify(plan), absl::OkStatus());
    defect.make(plan);
    const Status status = Verify(plan);
    EXPECT_FALSE(status.ok()) << "expected: " << defect.error;
    EXPECT_NE(std::string(status.message()).find(defect.error), std::string::npos)
        << status.message() << "\nexpected: " << defect.error;
  }
}

TEST(DecodePlan, HashDependsOnEverythingButTheRows) {
  const DecodeSpec spec = Spec(DecodeMethod::kTpla, 4, 8);
  const uint64_t hash = HashWithoutRows(spec);
  DecodeSpec rows = spec;
  rows.rows = 17;
  EXPECT_EQ(HashWithoutRows(rows), hash);
  const std::function<void(DecodeSpec&)> changes[] = {[](DecodeSpec& s) { s.method = DecodeMethod::kTree; },
                                                      [](DecodeSpec& s) { s.ranks = 8; },
                                                      [](DecodeSpec& s) { s.groups = 2; },
                                                      [](DecodeSpec& s) { s.heads = 9; },
                                                      [](DecodeSpec& s) { s.kv_heads = 2; },
                                                      [](DecodeSpec& s) { ++s.qk_width; },
                                                      [](DecodeSpec& s) { ++s.v_width; },
                                                      [](DecodeSpec& s) { s.dtype = DType::kFloat16; }};
  for (const auto& change : changes) {
    DecodeSpec other = spec;
    change(other);
    EXPECT_NE(HashWithoutRows(other), hash) << ToString(other);
  }
}

TEST(DecodePlan, PrintsStepsAndATimeline) {
  const DecodePlan plan = BuildDecodePlan(Spec(DecodeMethod::kGatherQuery, 2, 4));
  EXPECT_EQ(ToString(plan.programs[1], 1), "attend_cache query slot 3 into 5,6 heads [0,4) after 0");
  EXPECT_NE(ToJson(plan).find("\"kind\":\"attend_cache\""), std::string::npos);
  const double seconds[] = {1e-3, 2e-3};
  const Price price = Simulate(plan, {}, seconds);
  EXPECT_GT(price.seconds, 2e-3);
  EXPECT_LT(price.seconds, 3e-3);
  EXPECT_NE(DrawTimeline(plan, price, 60).find("A attend to the cache"), std::string::npos);
}

}  // namespace
}  // namespace tessera
