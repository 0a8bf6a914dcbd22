#include "partition/verify.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <random>

#include "tests/unit/partition/small_plans.h"

namespace tessera {
namespace {

std::vector<Slot> ExternalSlots(const PlanSpec& spec, int rank) {
  const Problem& p = spec.problem;
  const int element = static_cast<int>(SizeInBytes(p.dtype));
  const int64_t queries = spec.query_layout.rows(rank), keys = spec.key_layout.rows(rank);
  const HeadRange heads{0, p.query_heads}, kv_heads{0, p.kv_heads};
  return {{SlotContent::kQuery, true, queries, heads, p.qk_width, element},
          {SlotContent::kKey, true, keys, kv_heads, p.qk_width, element},
          {SlotContent::kValue, true, keys, kv_heads, p.v_width, element},
          {SlotContent::kResult, true, queries, heads, p.v_width, element},
          {SlotContent::kResultLse, true, queries, heads, 1, 4}};
}

// Two ranks own tokens [0, 4) and [4, 8) of a causal problem. Rank 1 attends its own keys, then rank 0's, which it
// receives in slots 7 and 8. Written by hand, so that the checks stand on something no planner made.
Plan TwoRankRing() {
  Plan plan;
  plan.spec.problem = SmallProblem(*Mask::Causal(8, 8), 8);
  plan.spec.mesh = {1, 2, 1};
  plan.spec.strategy = "by hand";
  plan.spec.query_layout = plan.spec.key_layout = Layout::Contiguous(8, 2);
  const HeadRange heads{0, 4}, kv_heads{0, 2};
  for (int rank = 0; rank < 2; ++rank) {
    RankProgram program;
    program.rank = rank;
    program.slots = ExternalSlots(plan.spec, rank);
    program.slots.push_back({SlotContent::kPartialOutput, false, 4, heads, 6, 4});
    program.slots.push_back({SlotContent::kPartialLse, false, 4, heads, 1, 4});
    const Segment own{4 * rank, 4, 1};
    program.steps.push_back({ClearStep{5, 6, {0, 4}}, {}});
    program.steps.push_back({AttendStep{0, 1, 2, 5, 6, heads, {{0, own, 0, own}}}, {0}});
    if (rank == 0) {
      program.steps.push_back({SendStep{1, 0, {1, {0, 4}, kv_heads}}, {}});
      program.steps.push_back({SendStep{1, 1, {2, {0, 4}, kv_heads}}, {}});
      program.steps.push_back({FinishStep{5, 6, 3, 4}, {1}});
    } else {
      program.slots.push_back({SlotContent::kKey, false, 4, kv_heads, 8, 2});
      program.slots.push_back({SlotContent::kValue, false, 4, kv_heads, 6, 2});
      program.steps.push_back({ReceiveStep{0, 0, {7, {0, 4}, kv_heads}}, {}});
      program.steps.push_back({ReceiveStep{0, 1, {8, {0, 4}, kv_heads}}, {}});
      program.steps.push_back({AttendStep{0, 7, 8, 5, 6, heads, {{0, own, 0, {0, 4, 1}}}}, {1, 2, 3}});
      program.steps.push_back({FinishStep{5, 6, 3, 4}, {4}});
    }
    plan.programs.push_back(std::move(program));
  }
  return plan;
}

TEST(Verify, AcceptsAPlanWrittenByHand) {
  EXPECT_EQ(Verify(TwoRankRing()), absl::OkStatus());
}

TEST(Verify, NamesEveryKindOfDefect) {
  struct Defect {
    const char* error;
    std::function<void(Plan&)> make;
  };
  const Defect defects[] = {
      // Structure.
      {"structure: 1 programs for 2 ranks", [](Plan& p) { p.programs.pop_back(); }},
      {"structure: program 1 says it is for rank 0", [](Plan& p) { p.programs[1].rank = 0; }},
      {"structure: rank 0 slot 5 has width 7 instead of 6", [](Plan& p) { p.programs[0].slots[5].width = 7; }},
      {"structure: rank 0 slot 5 has 2-byte elements instead of 4",
       [](Plan& p) { p.programs[0].slots[5].element_bytes = 2; }},
      {"structure: rank 0 slot 0 must be the external query with 4 rows",
       [](Plan& p) { p.programs[0].slots[0].rows = 5; }},
      {"structure: rank 0 slot 5 has heads [0, 5) of 4",
       [](Plan& p) {
         p.programs[0].slots[5].heads = {0, 5};
       }},
      {"structure: rank 1 step 2 (receive) region rows [0, 5) exceed the 4 rows of slot 7",
       [](Plan& p) {
         BodyOf<ReceiveStep>(p, 1, 2).region.rows = {0, 5};
       }},
      {"structure: rank 0 step 2 (send) moves heads [0, 1) of slot 1, not all of them",
       [](Plan& p) {
         BodyOf<SendStep>(p, 0, 2).region.heads = {0, 1};
       }},
      {"structure: rank 0 step 2 (send) moves nothing",
       [](Plan& p) {
         BodyOf<SendStep>(p, 0, 2).region.rows = {2, 2};
       }},
      {"structure: rank 0 step 2 (send) names peer 0", [](Plan& p) { BodyOf<SendStep>(p, 0, 2).peer = 0; }},
      {"structure: rank 1 step 2 (receive) region slot 1 is a read-only input",
       [](Plan& p) { BodyOf<ReceiveStep>(p, 1, 2).region.slot = 1; }},
      {"structure: rank 1 step 4 (attend) depends on step 4, which is not an earlier step",
       [](Plan& p) { p.programs[1].steps[4].after = {4}; }},
      {"structure: rank 1 step 4 (attend) key slot 8 holds value",
       [](Plan& p) { BodyOf<AttendStep>(p, 1, 4).key = 8; }},
      {"structure: rank 1 step 4 (attend) tile 0 key tokens 5+4 are not within 8 tokens",
       [](Plan& p) { BodyOf<AttendStep>(p, 1, 4).tiles[0].keys.begin = 5; }},
      {"structure: rank 1 step 4 (attend) tile 0 query rows [1, 5) exceed the 4 rows of slot 0",
       [](Plan& p) { BodyOf<AttendStep>(p, 1, 4).tiles[0].query_row = 1; }},
      {"structure: rank 1 step 5 (finish) result slot 99 does not exist",
       [](Plan& p) { BodyOf<FinishStep>(p, 1, 5).result = 99; }},
      // Messages.
      {"messages: rank 0 step 3 (send) with tag 1 has no receive on rank 1",
       [](Plan& p) {
         Erase(p.programs[1], 3);
         BodyOf<AttendStep>(p, 1, 3).tiles.front().keys.count = 4;
       }},
      {"messages: rank 1 step 2 (receive) with tag 0 has no send on rank 0", [](Plan& p) { Erase(p.programs[0], 2); }},
      {"messages: rank 0 step 3 (send) repeats tag 0 of rank 0 step 2 (send)",
       [](Plan& p) { BodyOf<SendStep>(p, 0, 3).tag = 0; }},
      {"messages: rank 0 step 2 (send) sends 96 bytes but rank 1 step 2 (receive) expects 128",
       [](Plan& p) {
         BodyOf<SendStep>(p, 0, 2).region.rows = {0, 3};
       }},
      {"messages: rank 0 step 2 (send) sends 128 bytes but rank 1 step 3 (receive) expects 96",
       [](Plan& p) { std::swap(BodyOf<ReceiveStep>(p, 1, 2).tag, BodyOf<ReceiveStep>(p, 1, 3).tag); }},
      // Progress: the sender wants value before key, the receiver key before value.
      {"progress: deadlock: ",
       [](Plan& p) {
         p.programs[0].steps[3].after = {2};
         std::swap(p.programs[1].steps[2].body, p.programs[1].steps[3].body);
         p.programs[1].steps[3].after = {2};
       }},
      // Lifetimes.
      {"lifetimes: rank 1 step 4 (attend) reads rows [0, 4) of slot 7 without waiting for rank 1 step 2 (receive)",
       [](Plan& p) {
         p.programs[1].steps[4].after = {1, 3};
       }},
      {"lifetimes: rank 1 step 5 (receive) overwrites rows [0, 4) of slot 7 without waiting for rank 1 step 4 (attend)",
       [](Plan& p) {
         p.programs[0].steps.push_back({SendStep{1, 2, {1, {0, 4}, {0, 2}}}, {}});
         p.programs[1].steps.insert(p.programs[1].steps.begin() + 5, {ReceiveStep{0, 2, {7, {0, 4}, {0, 2}}}, {2}});
       }},
      // Contents.
      {"contents: rank 1 step 4 (attend) expects key tokens 1 in rows [0, 1) of slot 7, which hold tokens 0",
       [](Plan& p) {
         Tile& tile = BodyOf<AttendStep>(p, 1, 4).tiles[0];
         tile.keys = {1, 1, 1};
       }},
      {"contents: rank 1 step 4 (attend) expects query tokens 0+4 in rows [0, 4) of slot 0, which hold tokens 4+4",
       [](Plan& p) { BodyOf<AttendStep>(p, 1, 4).tiles[0].queries.begin = 0; }},
      {"contents: rank 1 step 1 (attend) adds to rows [3, 4) of slot 5, which were never cleared",
       [](Plan& p) {
         BodyOf<ClearStep>(p, 1, 0).rows = {0, 3};
       }},
      {"contents: rank 1 query tokens 4+4 heads [0, 4): result is never written",
       [](Plan& p) { Erase(p.programs[1], 5); }},
      {"contents: rank 1 step 6 (finish) writes rows [0, 4) of result slot 3 a second time",
       [](Plan& p) { p.programs[1].steps.push_back(p.programs[1].steps[5]); }},
      // Coverage.
      {"coverage: query token 4 and key token 0 of heads [0, 4) never reach the result",
       [](Plan& p) { Erase(p.programs[1], 4); }},
      {"coverage: query token 4 and key token 0 of heads [0, 4) never reach the result",
       [](Plan& p) {  // finished before the last attend
         std::swap(p.programs[1].steps[4].body, p.programs[1].steps[5].body);
         p.programs[1].steps[5].after = {2, 3, 4};
       }},
      {"coverage: query token 4 and key token 4 of heads [0, 4) never reach the result",
       [](Plan& p) {  // cleared after the first attend
         p.programs[1].steps.insert(p.programs[1].steps.begin() + 4, {ClearStep{5, 6, {0, 4}}, {2, 3}});
         p.programs[1].steps[5].after = {4};
       }},
      {"coverage: query token 4 and key token 3 of heads [0, 4) never reach the result",
       [](Plan& p) { BodyOf<AttendStep>(p, 1, 4).tiles[0].keys.count = 3; }},
      {"coverage: query token 4 and key token 0 of heads [3, 4) never reach the result",
       [](Plan& p) {
         BodyOf<AttendStep>(p, 1, 4).heads = {0, 3};
       }},
      {"coverage: query token 4 and key token 0 of heads [0, 4) reach the result more than once: from rank 1 step 4",
       [](Plan& p) {
         AttendStep& attend = BodyOf<AttendStep>(p, 1, 4);
         attend.tiles.push_back(attend.tiles[0]);
       }},
      // Idle work.
      {"masked-out work: rank 0 step 1 (attend) attends query tokens 0 to key tokens 1",
       [](Plan& p) {
         BodyOf<AttendStep>(p, 0, 1).tiles.push_back({0, {0, 1, 1}, 1, {1, 1, 1}});
       }},
  };
  for (const Defect& defect : defects) {
    Plan plan = TwoRankRing();
    defect.make(plan);
    ExpectError(plan, defect.error);
  }
}

TEST(Verify, AcceptsWhatPlannersMake) {
  for (const int ranks : {1, 2, 3, 4, 6, 7, 16}) {
    for (const int64_t tokens : {5, 64, 301}) {  // the last is beyond counting pairs one by one
      for (const Mask& mask : Masks(tokens)) {
        Problem problem = SmallProblem(mask, tokens);
        if (tokens == 301) problem.query_heads = problem.kv_heads = 13;
        for (const std::string& strategy : AllStrategies(ranks)) {
          const StatusOr<Plan> plan = MakePlan(problem, strategy, ranks);
          if (!plan.ok()) continue;  // some strategies need a rank count they can factor
          EXPECT_EQ(Verify(*plan), absl::OkStatus()) << strategy << " ranks " << ranks << " tokens " << tokens;
        }
      }
    }
  }
}

TEST(Verify, CatchesHeadsThatDoNotReturnFromTheHeadExchange) {
  Plan plan = *MakePlan(SmallProblem(*Mask::Causal(16, 16), 16), "ulysses", 2);
  for (RankProgram& program : plan.programs) {
    for (Step& step : program.steps) {
      auto* exchange = std::get_if<ExchangeStep>(&step.body);
      if (exchange == nullptr || exchange->receives.empty()) continue;
      if (exchange->receives.front().region.slot != kResultSlot) continue;
      // Both halves of the result land in the first half's heads.
      exchange->receives.back().region.heads = exchange->receives.front().region.heads;
    }
  }
  ExpectError(plan, "that the same step uses");
}

TEST(Verify, CatchesAPartialMergedTwiceAndOneMergedNowhere) {
  const Plan right = *MakePlan(SmallProblem(*Mask::Full(16, 16), 16), "tree", 4);
  ASSERT_EQ(Verify(right), absl::OkStatus());
  for (const bool twice : {true, false}) {
    Plan plan = right;
    bool changed = false;
    for (Step& step : plan.programs[0].steps) {
      auto* merge = std::get_if<MergeStep>(&step.body);
      if (merge == nullptr || changed) continue;
      changed = true;
      if (twice) {
        merge->rows.push_back(merge->rows.front());
      } else {
        merge->rows.clear();
      }
    }
    ASSERT_TRUE(changed);
    ExpectError(plan, twice ? "reach the result more than once" : "never reach the result");
  }
}

TEST(Verify, CatchesAnExchangeThatOneMemberDoesNotEnter) {
  Plan plan = *MakePlan(SmallProblem(*Mask::Full(16, 16), 16), "allgather", 4);
  StepId last = kNone;
  for (StepId step = 0; step < static_cast<int>(plan.programs[2].steps.size()); ++step) {
    if (std::holds_alternative<ExchangeStep>(plan.programs[2].steps[step].body)) last = step;
  }
  ASSERT_NE(last, kNone);
  Erase(plan.programs[2], last);
  ExpectError(plan, "which rank 2 does not enter");
}

// Changes one thing that matters in a random step; false when the step has no such thing.
bool Mutate(RankProgram& program, StepId id, std::mt19937& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  StepBody& body = program.steps[id].body;
  if (below(3) == 0) {
    Erase(program, id);
    return true;
  }
  if (auto* attend = std::get_if<AttendStep>(&body)) {
    Tile& tile = attend->tiles[below(attend->tiles.size())];
    switch (below(6)) {
      case 0:
        ++tile.query_row;
        break;
      case 1:
        ++tile.key_row;
        break;
      case 2:
        ++tile.queries.begin;
        break;
      case 3:
        ++tile.keys.begin;
        break;
      case 4:
        ++attend->heads.begin;
        break;
      default:
        attend->tiles.push_back(tile);
        break;
    }
    return true;
  }
  if (const std::optional<bool> changed = MutateMessage(body, random)) return *changed;
  if (auto* merge = std::get_if<MergeStep>(&body)) {
    MergeRows& run = merge->rows[below(merge->rows.size())];
    ++(below(2) == 0 ? run.source_row : run.destination_row);
    return true;
  }
  if (auto* clear = std::get_if<ClearStep>(&body)) {
    --clear->rows.end;
    return true;
  }
  return false;
}

TEST(Verify, CatchesRandomMutationsOfPlannersPlans) {
  std::mt19937 random(20240229);
  int mutants = 0;
  for (int round = 0; round < 4000; ++round) {
    const int ranks = 2 + static_cast<int>(random() % 6);
    const int64_t tokens = 8 + static_cast<int64_t>(random() % 40);
    const std::vector<Mask> masks = Masks(tokens);
    const std::vector<std::string> strategies = AllStrategies(ranks);
    const std::string strategy = strategies[random() % strategies.size()];
    StatusOr<Plan> plan = MakePlan(SmallProblem(masks[random() % masks.size()], tokens), strategy, ranks);
    if (!plan.ok()) continue;
    RankProgram& program = plan->programs[random() % ranks];
    if (program.steps.empty()) continue;
    const auto id = static_cast<StepId>(random() % program.steps.size());
    const std::string kind(KindName(program.steps[id].body));
    if (!Mutate(program, id, random)) continue;
    ++mutants;
    EXPECT_FALSE(Verify(*plan).ok()) << strategy << " on " << ranks << " ranks, " << tokens << " tokens: rank "
                                     << program.rank << " step " << id << " (" << kind << ")";
  }
  EXPECT_GT(mutants, 2000);
}

TEST(Verify, IsNearLinearInThePlan) {
  Problem problem = SmallProblem(*Mask::Causal(1 << 20, 1 << 20), 1 << 20);
  const Plan plan = *MakePlan(problem, "zigzag", 256);
  size_t steps = 0;
  for (const RankProgram& program : plan.programs) steps += program.steps.size();
  EXPECT_GT(steps, 250'000u);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Verify(plan), absl::OkStatus());
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_LT(elapsed.count(), 20) << steps << " steps";  // about a second; quadratic would be minutes
}

}  // namespace
}  // namespace tessera
