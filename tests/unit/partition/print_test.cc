#include "partition/print.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "partition/planner.h"

namespace tessera {
namespace {

Plan MakePlan(const std::string& strategy, int ranks, Mask mask = *Mask::Causal(64, 64), Pass pass = Pass::kForward) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 64;
  problem.query_heads = 4;
  problem.kv_heads = 2;
  problem.qk_width = 8;
  problem.v_width = 6;
  problem.mask = std::move(mask);
  problem.score.soft_cap = 30.1f;
  problem.score.sink = true;
  PlanOptions options;
  options.strategy = strategy;
  options.ranks = ranks;
  options.pass = pass;
  return BuildPlan(*MakePlanSpec(problem, options));
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}
void ExpectError(const std::string& json, const std::string& error) {
  const StatusOr<Plan> plan = PlanFromJson(json);
  ASSERT_FALSE(plan.ok()) << "expected: " << error;
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(plan.status().message()).find(error), std::string::npos)
      << plan.status().message() << "\nexpected: " << error;
}

TEST(ToString, DescribesSteps) {
  const Plan plan = MakePlan("ring", 2);
  const RankProgram& program = plan.programs[0];
  EXPECT_EQ(ToString(program, 0), "clear slots 5,6 rows [0,32)");
  const auto attend = std::find_if(program.steps.begin(), program.steps.end(),
                                   [](const Step& step) { return std::holds_alternative<AttendStep>(step.body); });
  EXPECT_EQ(ToString(program, static_cast<StepId>(attend - program.steps.begin())),
            "attend q[0,32) k[0,32) heads [0,4) after 0");
  EXPECT_NE(ToString(plan.spec).find("ring"), std::string::npos);
}

TEST(ToString, DescribesBackwardSteps) {
  const Plan plan = MakePlan("grid:2x2", 4, *Mask::Causal(64, 64), Pass::kBackward);
  EXPECT_NE(ToString(plan.spec).find("grid:2x2 backward (ring"), std::string::npos) << ToString(plan.spec);
  RankProgram program;
  program.steps = {{DeltaStep{3, 5, 9}, {}},
                   {ZeroStep{10, {0, 32}}, {}},
                   {AttendBackwardStep{0, 1, 2, 5, 4, 9, 10, 11, 12, {0, 4}, {{0, {0, 32}, 0, {32, 8, 2}}}}, {0, 1}},
                   {AddStep{13, 11, {{0, 4, 8}, {8, 16, 2}}}, {2}},
                   {RoundStep{11, 7}, {3}}};
  EXPECT_EQ(ToString(program, 0), "delta slots 3,5 into 9");
  EXPECT_EQ(ToString(program, 1), "zero slot 10 rows [0,32)");
  EXPECT_EQ(ToString(program, 2), "attend_backward q[0,32) k[32,47)/2 heads [0,4) after 0,1");
  EXPECT_EQ(ToString(program, 3), "add slot 13 into 11 rows [0,8)->[4,12) [8,10)->[16,18) after 2");
  EXPECT_EQ(ToString(program, 4), "round slot 11 into 7 after 3");
}

TEST(Json, RoundTripsEveryStrategyAndMask) {
  const std::vector<int64_t> documents{0, 10, 10, 40, 64};
  const MaskSlice slices[] = {{{0, 20}, {0, 30}, SliceType::kFull},
                              {{20, 64}, {5, 40}, SliceType::kInverseCausal},
                              {{20, 50}, {40, 60}, SliceType::kCausal}};
  for (const Mask& mask : {Mask(), *Mask::Full(64, 64), *Mask::Causal(64, 64), *Mask::Causal(64, 64, {7, 0}),
                           *Mask::Causal(64, 64, {7, 3}), *Mask::Documents(64, documents, SliceType::kCausal, {5, 2}),
                           *Mask::Documents(64, documents, SliceType::kBiCausal), *Mask::FromSlices(64, 64, slices)}) {
    for (const int ranks : {1, 3, 4}) {
      for (const std::string& strategy : StrategyNames(ranks)) {
        for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
          const Plan plan = MakePlan(strategy, ranks, mask, pass);
          const StatusOr<Plan> read = PlanFromJson(ToJson(plan));
          ASSERT_EQ(read.status(), absl::OkStatus()) << strategy;
          EXPECT_EQ(*read, plan) << strategy;
        }
      }
    }
  }
}

TEST(Json, NamesTheFieldThatIsWrong) {
  const std::string good = ToJson(MakePlan("grid:2x2", 4));
  ExpectError("", "the text is not JSON");
  ExpectError("[1, 2", "the text is not JSON");
  ExpectError("[]", "the document is not an object");
  ExpectError("{}", "field 'schema' is missing");
  ExpectError(Replaced(good, "tessera-plan-1", "tessera-plan-9"), "field 'schema' is 'tessera-plan-9'");
  ExpectError(Replaced(good, "\"method\":\"ring\"", "\"method\":\"rong\""), "field 'method' is 'rong'");
  ExpectError(Replaced(good, "\"pass\":\"forward\"", "\"pass\":\"onward\""), "field 'pass' is 'onward'");
  ExpectError(Replaced(good, "\"head_ranks\":2", "\"head_ranks\":\"2\""), "field 'mesh.head_ranks' must be an integer");
  ExpectError(Replaced(good, "\"query_tokens\":64", "\"query_tokens\":1e999"), "");
  ExpectError(Replaced(good, "\"query_tokens\":64", "\"query_tokens\":18446744073709551615"),
              "field 'problem.query_tokens' must be an integer");
  ExpectError(Replaced(good, "\"sink\":true", "\"sink\":1"), "field 'problem.sink' must be true or false");
  ExpectError(Replaced(good, "\"dtype\":\"bf16\"", "\"dtype\":\"int4\""), "field 'problem.dtype'");
  ExpectError(Replaced(good, "\"mask\":[{\"queries\":[0,64]", "\"mask\":[{\"queries\":[0,65]"), "field 'problem.mask'");
  ExpectError(Replaced(good, "\"query_layout\":[[[0", "\"query_layout\":[[[1"), "field 'query_layout'");
  ExpectError(Replaced(good, "\"content\":\"query\"", "\"content\":\"quest\""),
              "field 'programs[0].slots[0].content' is 'quest'");
  ExpectError(Replaced(good, "\"kind\":\"exchange\"", "\"kind\":\"barter\""), "].kind' is 'barter'");
  ExpectError(Replaced(good, "\"after\":[]", "\"after\":[null]"), ".after[0]' must be an integer");
  ExpectError(Replaced(good, "\"heads\":[0,4]", "\"heads\":[0,4,5]"), ".heads' must have 2 integers");
}

TEST(Json, SurvivesTruncationAndNoise) {
  const std::string good = ToJson(MakePlan("tree", 3));
  for (size_t length = 0; length < good.size(); length += 97) EXPECT_FALSE(PlanFromJson(good.substr(0, length)).ok());
  for (size_t at = 0; at < good.size(); at += 13) {
    std::string noisy = good;
    noisy[at] = noisy[at] == '[' ? '{' : '[';
    EXPECT_FALSE(PlanFromJson(noisy) == StatusOr<Plan>(MakePlan("tree", 3)));
  }
}

TEST(DrawTimeline, HasALaneForEveryRankAndALegend) {
  const Plan plan = MakePlan("zigzag", 3);
  const std::string chart = DrawTimeline(plan, Simulate(plan, {}), 60);
  EXPECT_NE(chart.find("predicted"), std::string::npos);
  for (const char* text : {"rank 0     compute c", "rank 2", "A attend", "receive", "> send"}) {
    EXPECT_NE(chart.find(text), std::string::npos) << text << "\n" << chart;
  }
  size_t lanes = 0, begin = 0;
  for (size_t end = chart.find('\n'); end != std::string::npos; begin = end + 1, end = chart.find('\n', begin)) {
    const std::string line = chart.substr(begin, end - begin);
    if (line.find("compute ") == 11 || line.find("send ") == 11 || line.find("receive ") == 11) {
      EXPECT_EQ(line.size(), 19u + 60u) << line;
      ++lanes;
    }
  }
  EXPECT_EQ(lanes, 9u);
}

TEST(DrawTimeline, HasGlyphsForTheBackwardPass) {
  const Plan plan = MakePlan("ring", 2, *Mask::Causal(64, 64), Pass::kBackward);
  const std::string chart = DrawTimeline(plan, Simulate(plan, {}), 120);
  EXPECT_NE(chart.find("B attend backward  D delta  z zero  + add  R round"), std::string::npos) << chart;
  const std::string lanes = chart.substr(0, chart.find("B attend"));
  for (const char glyph : {'B', 'D', 'z', '+', 'R', '>', '<'}) {
    EXPECT_NE(lanes.find(glyph, lanes.find("rank 0")), std::string::npos) << glyph << "\n" << chart;
  }
}

TEST(DrawTimeline, SaysWhenThereIsNothingToDraw) {
  Plan plan = MakePlan("ring", 2);
  plan.programs[0].steps.clear();
  EXPECT_EQ(DrawTimeline(plan, Simulate(plan, {}), 60), "no timeline: the plan cannot run to its end\n");
}

}  // namespace
}  // namespace tessera
