// Verify() of backward plans: defects of a plan written by hand, then random mutations of what planners make.
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "tests/unit/partition/small_plans.h"

namespace tessera {
namespace {

constexpr HeadRange kHeads{0, 4}, kKvHeads{0, 2};

// The external slots, then delta (9) and the own partial gradients of query, key and value (10, 11, 12).
std::vector<Slot> FirstSlots() {
  const auto query = [](SlotContent content, bool external, int width, int bytes) {
    return Slot{content, external, 4, kHeads, width, bytes};
  };
  const auto key = [](SlotContent content, bool external, int width, int bytes) {
    return Slot{content, external, 4, kKvHeads, width, bytes};
  };
  return {query(SlotContent::kQuery, true, 8, 2),
          key(SlotContent::kKey, true, 8, 2),
          key(SlotContent::kValue, true, 6, 2),
          query(SlotContent::kResult, true, 6, 2),
          query(SlotContent::kResultLse, true, 1, 4),
          query(SlotContent::kOutputGradient, true, 6, 2),
          query(SlotContent::kQueryGradient, true, 8, 2),
          key(SlotContent::kKeyGradient, true, 8, 2),
          key(SlotContent::kValueGradient, true, 6, 2),
          query(SlotContent::kDelta, false, 1, 4),
          query(SlotContent::kPartialQueryGradient, false, 8, 4),
          key(SlotContent::kPartialKeyGradient, false, 8, 4),
          key(SlotContent::kPartialValueGradient, false, 6, 4)};
}

// Two ranks own tokens [0, 4) and [4, 8) of a causal problem. Rank 1 receives rank 0's keys and values (13, 14),
// attends them into gradients of their own (15, 16) and sends those to rank 0, which adds them (13, 14) to its own.
Plan TwoRanks() {
  Plan plan;
  plan.spec.pass = Pass::kBackward;
  plan.spec.problem = SmallProblem(*Mask::Causal(8, 8), 8);
  plan.spec.mesh = {1, 2, 1};
  plan.spec.strategy = "by hand";
  plan.spec.query_layout = plan.spec.key_layout = Layout::Contiguous(8, 2);
  const Range all{0, 4};
  const Slot key_gradient{SlotContent::kPartialKeyGradient, false, 4, kKvHeads, 8, 4};
  const Slot value_gradient{SlotContent::kPartialValueGradient, false, 4, kKvHeads, 6, 4};
  for (int rank = 0; rank < 2; ++rank) {
    RankProgram program{rank, FirstSlots(), {}, {}};
    const Segment own{4 * rank, 4, 1};
    program.steps = {{DeltaStep{3, 5, 9}, {}},
                     {ZeroStep{10, all}, {}},
                     {ZeroStep{11, all}, {}},
                     {ZeroStep{12, all}, {}},
                     {AttendBackwardStep{0, 1, 2, 5, 4, 9, 10, 11, 12, kHeads, {{0, own, 0, own}}}, {0, 1, 2, 3}}};
    const auto add = [&](StepBody body, std::vector<StepId> after) {
      program.steps.push_back({std::move(body), std::move(after)});
    };
    if (rank == 0) {
      program.slots.insert(program.slots.end(), {key_gradient, value_gradient});
      add(SendStep{1, 0, {1, all, kKvHeads}}, {});
      add(SendStep{1, 1, {2, all, kKvHeads}}, {});
      add(ReceiveStep{1, 0, {13, all, kKvHeads}}, {});
      add(ReceiveStep{1, 1, {14, all, kKvHeads}}, {});
      add(AddStep{13, 11, {{0, 0, 4}}}, {4, 7});
      add(AddStep{14, 12, {{0, 0, 4}}}, {4, 8});
      add(RoundStep{10, 6}, {4});
      add(RoundStep{11, 7}, {9});
      add(RoundStep{12, 8}, {10});
    } else {
      program.slots.insert(program.slots.end(), {{SlotContent::kKey, false, 4, kKvHeads, 8, 2},
                                                 {SlotContent::kValue, false, 4, kKvHeads, 6, 2},
                                                 key_gradient,
                                                 value_gradient});
      const Segment others{0, 4, 1};
      add(ReceiveStep{0, 0, {13, all, kKvHeads}}, {});
      add(ReceiveStep{0, 1, {14, all, kKvHeads}}, {});
      add(ZeroStep{15, all}, {});
      add(ZeroStep{16, all}, {});
      add(AttendBackwardStep{0, 13, 14, 5, 4, 9, 10, 15, 16, kHeads, {{0, own, 0, others}}}, {4, 5, 6, 7, 8});
      add(SendStep{0, 0, {15, all, kKvHeads}}, {9});
      add(SendStep{0, 1, {16, all, kKvHeads}}, {9});
      add(RoundStep{10, 6}, {9});
      add(RoundStep{11, 7}, {4});
      add(RoundStep{12, 8}, {4});
    }
    plan.programs.push_back(std::move(program));
  }
  return plan;
}

TEST(VerifyBackward, AcceptsAPlanWrittenByHand) {
  EXPECT_EQ(Verify(TwoRanks()), absl::OkStatus());
}

TEST(VerifyBackward, NamesEveryKindOfDefect) {
  struct Defect {
    const char* error;
    std::function<void(Plan&)> make;
  };
  const Defect defects[] = {
      // Structure.
      {"structure: rank 0 slot 5 is external", [](Plan& p) { p.spec.pass = Pass::kForward; }},
      {"structure: rank 0 lacks some of the 9 external slots", [](Plan& p) { p.programs[0].slots.resize(8); }},
      {"structure: rank 1 slot 8 must be the external value_gradient with 4 rows and heads [0, 2)",
       [](Plan& p) {
         p.programs[1].slots[8].heads = {0, 1};
       }},
      {"structure: rank 0 slot 9 has 2-byte elements instead of 4",
       [](Plan& p) { p.programs[0].slots[9].element_bytes = 2; }},
      {"structure: rank 0 slot 12 has heads [0, 4) of 2", [](Plan& p) { p.programs[0].slots[12].heads = kHeads; }},
      {"structure: rank 0 step 1 (clear) is no step of the backward pass",
       [](Plan& p) {
         p.programs[0].steps[1].body = ClearStep{10, 10, {0, 4}};
       }},
      {"structure: rank 0 step 0 (delta) output slot 5 holds output_gradient",
       [](Plan& p) { BodyOf<DeltaStep>(p, 0, 0).output = 5; }},
      {"structure: rank 0 step 1 (zero) zeroed slot 9 holds delta",
       [](Plan& p) { BodyOf<ZeroStep>(p, 0, 1).slot = 9; }},
      {"structure: rank 0 step 1 (zero) zeroed rows [0, 5) exceed the 4 rows of slot 10",
       [](Plan& p) { BodyOf<ZeroStep>(p, 0, 1).rows.end = 5; }},
      {"structure: rank 0 step 4 (attend_backward) log-sum-exp slot 9 holds delta",
       [](Plan& p) { BodyOf<AttendBackwardStep>(p, 0, 4).lse = 9; }},
      {"structure: rank 0 step 4 (attend_backward) gradient slot 12 holds partial_value_gradient",
       [](Plan& p) { BodyOf<AttendBackwardStep>(p, 0, 4).key_gradient = 12; }},
      {"structure: rank 1 step 9 (attend_backward) tile 0 key rows [0, 4) exceed the 3 rows of slot 16",
       [](Plan& p) {
         p.programs[1].slots[16].rows = 3;
         BodyOf<ZeroStep>(p, 1, 8).rows.end = 3;
       }},
      {"structure: rank 0 step 7 (receive) region slot 4 is a read-only input",
       [](Plan& p) { BodyOf<ReceiveStep>(p, 0, 7).region.slot = 4; }},
      {"structure: rank 0 step 9 (add) destination slot 12 holds partial_value_gradient",
       [](Plan& p) { BodyOf<AddStep>(p, 0, 9).destination = 12; }},
      {"structure: rank 0 step 9 (add) adds a slot to itself", [](Plan& p) { BodyOf<AddStep>(p, 0, 9).source = 11; }},
      {"structure: rank 0 step 9 (add) added destination rows [1, 5) exceed the 4 rows of slot 11",
       [](Plan& p) { BodyOf<AddStep>(p, 0, 9).rows[0].destination_row = 1; }},
      {"structure: rank 0 step 11 (round) destination slot 7 holds key_gradient",
       [](Plan& p) { BodyOf<RoundStep>(p, 0, 11).destination = 7; }},
      // Messages.
      {"messages: rank 1 step 10 (send) with tag 0 has no receive on rank 0", [](Plan& p) { Erase(p.programs[0], 7); }},
      // Lifetimes.
      {"lifetimes: rank 0 step 9 (add) reads rows [0, 4) of slot 13 without waiting for rank 0 step 7 (receive)",
       [](Plan& p) { p.programs[0].steps[9].after = {4}; }},
      {"lifetimes: rank 1 step 10 (send) reads rows [0, 4) of slot 15 without waiting for rank 1 step 9",
       [](Plan& p) { p.programs[1].steps[10].after = {}; }},
      {"lifetimes: rank 1 step 9 (attend_backward) reads rows [0, 4) of slot 14 without waiting for rank 1 step 6",
       [](Plan& p) { p.programs[1].steps[9].after = {5}; }},
      // Contents.
      {"contents: rank 0 step 0 (attend_backward) expects delta tokens 0+4 in rows [0, 4) of slot 9, which hold "
       "nothing",
       [](Plan& p) {
         p.programs[0].steps[0].body.swap(p.programs[0].steps[4].body);
         p.programs[0].steps[4].after = {};
       }},
      {"contents: rank 1 step 9 (attend_backward) expects key tokens 1 in rows [0, 1) of slot 13, which hold tokens 0",
       [](Plan& p) {
         BodyOf<AttendBackwardStep>(p, 1, 9).tiles[0].keys = {1, 1, 1};
       }},
      {"contents: rank 1 step 9 (attend_backward) expects query tokens 5+3 in rows [0, 3) of slot 0, which hold tokens "
       "4+3",
       [](Plan& p) {
         BodyOf<AttendBackwardStep>(p, 1, 9).tiles[0].queries = {5, 3, 1};
       }},
      {"contents: rank 0 step 4 (attend_backward) adds to rows [3, 4) of slot 11, which were never cleared",
       [](Plan& p) { BodyOf<ZeroStep>(p, 0, 2).rows.end = 3; }},
      {"contents: rank 0 step 9 (add) adds a part of key token 0 to row 1 of slot 11, which belongs to token 1",
       [](Plan& p) {
         BodyOf<AddStep>(p, 0, 9).rows = {{0, 1, 3}};
       }},
      {"contents: rank 0 query tokens 0+4 heads [0, 4): query_gradient is never written",
       [](Plan& p) { Erase(p.programs[0], 11); }},
      {"contents: rank 1 key tokens 4+4 heads [0, 2): value_gradient is never written",
       [](Plan& p) { Erase(p.programs[1], 14); }},
      {"contents: rank 1 step 15 (round) writes rows [0, 4) of result slot 7 a second time",
       [](Plan& p) { p.programs[1].steps.push_back(p.programs[1].steps[13]); }},
      // Coverage.
      {"coverage: query token 4 and key token 0 of heads [0, 4) never reach the key_gradient",
       [](Plan& p) { Erase(p.programs[0], 9); }},
      {"coverage: query token 4 and key token 0 of heads [0, 4) never reach the value_gradient",
       [](Plan& p) { Erase(p.programs[0], 10); }},
      {"coverage: query token 4 and key token 3 of heads [0, 4) never reach the value_gradient",
       [](Plan& p) { BodyOf<AddStep>(p, 0, 10).rows[0].count = 3; }},
      {"coverage: query token 4 and key token 0 of heads [0, 4) reach the key_gradient more than once: from rank 1 "
       "step "
       "9 (attend_backward) and from rank 1 step 9 (attend_backward)",
       [](Plan& p) { p.programs[0].steps.insert(p.programs[0].steps.begin() + 11, p.programs[0].steps[9]); }},
      {"coverage: query token 4 and key token 0 of heads [0, 4) never reach the query_gradient",
       [](Plan& p) {  // rounded before the other rank's keys
         RankProgram& program = p.programs[1];
         Erase(program, 12);
         program.steps.insert(program.steps.begin() + 9, {RoundStep{10, 6}, {4}});
         program.steps[11].after = program.steps[12].after = {10};
       }},
      {"coverage: query token 4 and key token 4 of heads [0, 4) never reach the query_gradient",
       [](Plan& p) {  // zeroed after the first attend
         p.programs[1].steps[7].body = ZeroStep{10, {0, 4}};
         p.programs[1].steps.insert(p.programs[1].steps.begin() + 1, {ZeroStep{15, {0, 4}}, {}});
         for (StepId step = 2; step < static_cast<int>(p.programs[1].steps.size()); ++step) {
           for (StepId& after : p.programs[1].steps[step].after) after += after >= 1;
         }
       }},
      {"coverage: query token 4 and key token 0 of heads [0, 4) reach the key_gradient more than once",
       [](Plan& p) {
         AttendBackwardStep& attend = BodyOf<AttendBackwardStep>(p, 1, 9);
         attend.tiles.push_back(attend.tiles[0]);
       }},
      // Idle work.
      {"masked-out work: rank 0 step 4 (attend_backward) attends query tokens 0 to key tokens 1",
       [](Plan& p) {
         BodyOf<AttendBackwardStep>(p, 0, 4).tiles.push_back({0, {0, 1, 1}, 1, {1, 1, 1}});
       }},
  };
  for (const Defect& defect : defects) {
    Plan plan = TwoRanks();
    defect.make(plan);
    ExpectError(plan, defect.error);
  }
}

// Of the heads of a group, every one contributes to the gradients of the key head they share.
TEST(VerifyBackward, CountsEveryQueryHeadOfAGroup) {
  const auto split = [](Plan& plan, HeadRange first, HeadRange second) {
    RankProgram& program = plan.programs[1];
    Step more = program.steps[9];
    std::get<AttendBackwardStep>(program.steps[9].body).heads = first;
    std::get<AttendBackwardStep>(more.body).heads = second;
    program.steps.insert(program.steps.begin() + 10, std::move(more));
    for (StepId step = 11; step < static_cast<int>(program.steps.size()); ++step) {
      for (StepId& after : program.steps[step].after) after += after >= 9;
    }
  };
  Plan right = TwoRanks();
  split(right, {0, 3}, {3, 4});
  EXPECT_EQ(Verify(right), absl::OkStatus());

  // The second step's gradients of key and value go to slots that nobody reads, those of the query where they belong.
  const auto aside = [](Plan& plan) {
    RankProgram& program = plan.programs[1];
    program.slots.insert(program.slots.end(), {program.slots[15], program.slots[16]});
    auto& attend = std::get<AttendBackwardStep>(program.steps[10].body);
    attend.key_gradient = 17;
    attend.value_gradient = 18;
    program.steps.insert(program.steps.begin(), {{ZeroStep{17, {0, 4}}, {}}, {ZeroStep{18, {0, 4}}, {}}});
    for (StepId step = 2; step < static_cast<int>(program.steps.size()); ++step) {
      for (StepId& after : program.steps[step].after) after += 2;
    }
  };
  Plan lost = TwoRanks();
  split(lost, {0, 3}, {3, 4});
  aside(lost);
  ExpectError(lost, "coverage: query token 4 and key token 0 of heads [3, 4) never reach the key_gradient");

  Plan doubled = TwoRanks();
  split(doubled, {0, 3}, {2, 4});
  ExpectError(doubled, "coverage: query token 4 and key token 0 of heads [2, 3) reach the key_gradient more than once");

  Plan doubled_query = TwoRanks();
  split(doubled_query, {0, 4}, {2, 4});
  aside(doubled_query);
  ExpectError(doubled_query, "token 0 of heads [2, 4) reach the query_gradient more than once");
}

TEST(VerifyBackward, AcceptsWhatPlannersMake) {
  for (const int ranks : {1, 2, 3, 4, 6, 7, 16}) {
    for (const int64_t tokens : {5, 64, 301}) {  // the last is beyond counting pairs one by one
      for (const Mask& mask : Masks(tokens)) {
        for (const auto& [heads, kv_heads] : {std::pair(4, 2), std::pair(12, 12), std::pair(6, 1)}) {
          Problem problem = SmallProblem(mask, tokens);
          problem.query_heads = heads;
          problem.kv_heads = kv_heads;
          for (const std::string& strategy : AllStrategies(ranks)) {
            const StatusOr<Plan> plan = MakePlan(problem, strategy, ranks, Pass::kBackward);
            if (!plan.ok()) continue;  // some strategies need a rank count they can factor
            EXPECT_EQ(Verify(*plan), absl::OkStatus())
                << strategy << " ranks " << ranks << " tokens " << tokens << " heads " << heads << "/" << kv_heads;
          }
        }
      }
    }
  }
}

// Steps a plan can do without: zeroing nothing, and deltas of queries that attend nothing.
bool IsIdle(const PlanSpec& spec, const RankProgram& program, StepId id) {
  const StepBody& body = program.steps[id].body;
  if (const auto* zero = std::get_if<ZeroStep>(&body)) {
    return zero->rows.empty() || program.slots[zero->slot].heads.empty();
  }
  double area = 0;
  for (const Segment& queries : spec.query_layout.segments(program.rank)) {
    area += spec.problem.mask.Area(queries, {0, spec.problem.key_tokens});
  }
  return std::holds_alternative<DeltaStep>(body) && area == 0;
}

// Changes one thing that matters in a random step; false when the step has no such thing.
bool Mutate(RankProgram& program, StepId id, std::mt19937& random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  StepBody& body = program.steps[id].body;
  if (below(3) == 0) {
    Erase(program, id);
    return true;
  }
  if (auto* attend = std::get_if<AttendBackwardStep>(&body)) {
    Tile& tile = attend->tiles[below(attend->tiles.size())];
    const std::function<void()> changes[] = {
        [&] { ++tile.query_row; },           [&] { ++tile.key_row; },        [&] { ++tile.queries.begin; },
        [&] { ++tile.keys.begin; },          [&] { ++attend->heads.begin; }, [&] { attend->tiles.push_back(tile); },
        [&] { attend->lse = attend->delta; }};
    changes[below(std::size(changes))]();
    return true;
  }
  if (const std::optional<bool> changed = MutateMessage(body, random)) return *changed;
  if (auto* add = std::get_if<AddStep>(&body)) {
    if (add->rows.empty()) return false;
    MergeRows& run = add->rows[below(add->rows.size())];
    switch (below(4)) {
      case 0:
        ++run.source_row;
        break;
      case 1:
        ++run.destination_row;
        break;
      case 2:
        --run.count;
        break;
      default:
        add->rows.push_back(run);
        break;
    }
    return true;
  }
  if (auto* zero = std::get_if<ZeroStep>(&body)) {
    --zero->rows.end;
    return true;
  }
  if (auto* round = std::get_if<RoundStep>(&body)) {
    ++round->destination;
    return true;
  }
  return false;
}

TEST(VerifyBackward, CatchesRandomMutationsOfPlannersPlans) {
  std::mt19937 random(20260229);
  int mutants = 0;
  for (int round = 0; round < 4000; ++round) {
    const int ranks = 2 + static_cast<int>(random() % 6);
    const int64_t few = 8 + static_cast<int64_t>(random() % 40);
    const int64_t tokens = round % 40 == 0 ? 301 : few;  // that many are beyond counting pairs one by one
    const std::vector<Mask> masks = Masks(tokens);
    const Mask& mask = masks[1 + random() % (masks.size() - 1)];  // without attention, whole head shards are idle
    const std::vector<std::string> strategies = AllStrategies(ranks);
    const std::string strategy = strategies[random() % strategies.size()];
    Problem problem = SmallProblem(mask, tokens);
    if (tokens > 200) problem.query_heads = problem.kv_heads = 13;
    StatusOr<Plan> plan = MakePlan(problem, strategy, ranks, Pass::kBackward);
    if (!plan.ok()) continue;
    RankProgram& program = plan->programs[random() % ranks];
    if (program.steps.empty()) continue;
    const auto id = static_cast<StepId>(random() % program.steps.size());
    if (IsIdle(plan->spec, program, id)) continue;
    const std::string kind(KindName(program.steps[id].body));
    if (!Mutate(program, id, random)) continue;
    ++mutants;
    EXPECT_FALSE(Verify(*plan).ok()) << strategy << " on " << ranks << " ranks, " << tokens << " tokens: rank "
                                     << program.rank << " step " << id << " (" << kind << ")";
  }
  EXPECT_GT(mutants, 2000);
}

}  // namespace
}  // namespace tessera
