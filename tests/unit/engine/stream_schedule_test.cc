// Whatever the plan, two in-order queues with the schedule's waits do nothing before what it depends on.
#include "runtime/engine/stream_schedule.h"

#include <gtest/gtest.h>

#include "partition/message_rounds.h"
#include "partition/planner.h"
#include "tests/support/decode_case.h"
#include "tests/support/problems.h"

namespace tessera {
namespace {

// Whether action `a` is certain to be over when action `b` starts: by the order of its queue, or by a chain of waits.
class Certainty {
 public:
  explicit Certainty(const std::vector<StreamAction>& actions) : before_(actions.size()) {
    int last[2] = {kNone, kNone};
    for (size_t i = 0; i < actions.size(); ++i) {
      before_[i].resize(actions.size(), false);
      for (const int from : {last[actions[i].communicates], actions[i].wait_for}) {
        if (from == kNone) continue;
        before_[i][from] = true;
        for (size_t j = 0; j < actions.size(); ++j) {
          if (before_[from][j]) before_[i][j] = true;
        }
      }
      last[actions[i].communicates] = static_cast<int>(i);
    }
  }
  bool Over(int a, int b) const { return before_[b][a]; }

 private:
  std::vector<std::vector<bool>> before_;
};

void ExpectOrdered(const RankProgram& program, const std::vector<StreamAction>& actions) {
  std::vector<int> action_of(program.steps.size(), kNone);
  int last_compute = kNone;
  for (size_t i = 0; i < actions.size(); ++i) {
    const StreamAction& action = actions[i];
    for (const StepId id : action.steps) {
      EXPECT_EQ(action_of[id], kNone) << "submitted twice";
      action_of[id] = static_cast<int>(i);
      EXPECT_EQ(action.communicates, !IsCompute(program.steps[id].body));
    }
    if (!action.communicates) {
      ASSERT_EQ(action.steps.size(), 1u);
      EXPECT_GT(action.steps[0], last_compute) << "compute steps keep their order";
      last_compute = action.steps[0];
    }
    if (action.wait_for == kNone) continue;
    ASSERT_LT(action.wait_for, static_cast<int>(i)) << "an event is recorded before it is awaited";
    EXPECT_NE(actions[action.wait_for].communicates, action.communicates);
    EXPECT_TRUE(actions[action.wait_for].awaited);
  }
  const Certainty certainty(actions);
  for (size_t id = 0; id < program.steps.size(); ++id) {
    ASSERT_NE(action_of[id], kNone) << "step " << id << " is missing";
    for (const StepId before : program.steps[id].after) {
      EXPECT_TRUE(certainty.Over(action_of[before], action_of[id])) << "step " << id << " may start before " << before;
    }
  }
}

template <typename AnyPlan>
void ExpectSchedules(const AnyPlan& plan) {
  const auto rounds = MessageRounds(plan);
  ASSERT_TRUE(rounds.ok()) << rounds.status();
  for (const RankProgram& program : plan.programs) {
    const auto actions = MakeStreamSchedule(program, (*rounds)[program.rank]);
    ASSERT_TRUE(actions.ok()) << actions.status();
    ExpectOrdered(program, *actions);
  }
}

TEST(StreamSchedule, NothingStartsBeforeWhatItDependsOn) {
  for (const int ranks : {1, 2, 3, 4, 6, 8}) {
    for (int i = 0; i < testing::Problems(10); ++i) {
      auto generator = testing::GeneratorFor(absl::StrCat("stream_schedule/", ranks, "/", i));
      const Problem problem = testing::RandomProblem(generator, 80);
      for (const std::string& strategy : StrategyNames(ranks)) {
        for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
          SCOPED_TRACE(absl::StrCat(strategy, " on ", ranks, " ranks: ", problem.ToString()));
          const auto spec = MakePlanSpec(problem, {.strategy = strategy, .ranks = ranks, .pass = pass});
          ASSERT_TRUE(spec.ok()) << spec.status();
          ExpectSchedules(BuildPlan(*spec));
        }
      }
    }
  }
}

TEST(StreamSchedule, NothingOfADecodeStepStartsBeforeWhatItDependsOn) {
  for (const int ranks : {1, 2, 3, 4, 6, 8}) {
    for (const DecodeMethod method : AllDecodeMethods()) {
      for (int i = 0; i < testing::Problems(10); ++i) {
        auto generator = testing::GeneratorFor(
            absl::StrCat("stream_schedule/decode/", ranks, "/", std::string(Name(method)), "/", i));
        const DecodePlan plan = BuildDecodePlan(testing::RandomDecodeCase(method, ranks, generator).spec);
        SCOPED_TRACE(ToString(plan.spec));
        ExpectSchedules(plan);
      }
    }
  }
}

TEST(StreamSchedule, ARingSendsBeforeItComputes) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = 64;
  problem.query_heads = problem.kv_heads = 1;
  problem.qk_width = problem.v_width = 8;
  problem.mask = *Mask::Full(64, 64);
  const Plan plan = BuildPlan(*MakePlanSpec(problem, {.strategy = "ring", .ranks = 4}));
  const auto actions = MakeStreamSchedule(plan.programs[1], (*MessageRounds(plan))[1]);
  ASSERT_TRUE(actions.ok()) << actions.status();
  EXPECT_TRUE(actions->front().communicates);
  EXPECT_EQ(actions->front().wait_for, kNone);
}

TEST(StreamSchedule, ACircleIsAnError) {
  RankProgram program;
  program.steps.push_back({SendStep{}, {1}});
  program.steps.push_back({ClearStep{}, {0}});
  const auto actions = MakeStreamSchedule(program, {0, kNone});
  ASSERT_FALSE(actions.ok());
  EXPECT_EQ(std::string(actions.status().message()),
            "rank 0: the rounds of its plan and its compute steps wait for each other");
}

}  // namespace
}  // namespace tessera
