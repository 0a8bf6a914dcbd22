// Rounds against the rules they promise, and by running them as ordered streams with rendezvous.
#include "partition/message_rounds.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <tuple>

#include "tests/support/decode_case.h"
#include "tests/support/problems.h"
#include "tests/unit/partition/small_plans.h"

namespace tessera {
namespace {

using Rounds = std::vector<std::vector<int>>;

// Who a rank exchanges messages with in each of its rounds, by round.
std::map<int, std::set<int>> PeersByRound(const RankProgram& program, const std::vector<int>& rounds) {
  std::map<int, std::set<int>> peers;
  for (size_t step = 0; step < program.steps.size(); ++step) {
    if (rounds[step] == kNone) continue;
    std::set<int>& with = peers[rounds[step]];
    const StepBody& body = program.steps[step].body;
    if (const auto* send = std::get_if<SendStep>(&body)) with.insert(send->peer);
    if (const auto* receive = std::get_if<ReceiveStep>(&body)) with.insert(receive->peer);
    if (const auto* exchange = std::get_if<ExchangeStep>(&body)) {
      for (const auto& part : exchange->sends) with.insert(part.peer);
      for (const auto& part : exchange->receives) with.insert(part.peer);
    }
    with.erase(program.rank);
  }
  return peers;
}

// Every rank starts a round when its earlier rounds are complete, and completes it when its peers have started it too.
// Returns the number of rounds left when nothing moves any more.
int RunAsStreams(std::span<const RankProgram> programs, const Rounds& rounds) {
  std::vector<std::map<int, std::set<int>>> left;
  for (const RankProgram& program : programs) left.push_back(PeersByRound(program, rounds[program.rank]));
  const auto count = [&] {
    size_t sum = 0;
    for (const auto& rank : left) sum += rank.size();
    return static_cast<int>(sum);
  };
  for (bool moved = true; moved;) {
    moved = false;
    std::vector<int> completed;
    for (size_t rank = 0; rank < left.size(); ++rank) {
      if (left[rank].empty()) continue;
      const auto& [round, peers] = *left[rank].begin();
      bool met = true;
      for (const int peer : peers) met = met && (left[peer].empty() || left[peer].begin()->first >= round);
      if (met) completed.push_back(static_cast<int>(rank));
    }
    for (const int rank : completed) {
      left[rank].erase(left[rank].begin());
      moved = true;
    }
  }
  return count();
}

// What a step waits for lies in earlier rounds; compute steps wait for one another in program order.
void ExpectInOrder(const RankProgram& program, const std::vector<int>& rounds) {
  std::vector<int> latest(program.steps.size(), kNone);  // round that must be over before the step is done
  int compute = kNone;
  for (size_t id = 0; id < program.steps.size(); ++id) {
    const Step& step = program.steps[id];
    const bool computes = IsCompute(step.body);
    ASSERT_EQ(computes, rounds[id] == kNone) << "rank " << program.rank << " step " << id;
    int before = computes ? compute : kNone;
    for (const StepId after : step.after) before = std::max(before, latest[after]);
    if (computes) {
      latest[id] = compute = before;
    } else {
      EXPECT_GT(rounds[id], before) << "rank " << program.rank << " step " << id;
      latest[id] = rounds[id];
    }
  }
}

// Messages by (sender, receiver, tag): both ends have the same round.
void ExpectMatched(std::span<const RankProgram> programs, const Rounds& rounds) {
  std::map<std::tuple<int, int, int>, int> sends, receives;
  for (const RankProgram& program : programs) {
    for (size_t id = 0; id < program.steps.size(); ++id) {
      const int round = rounds[program.rank][id];
      if (const auto* send = std::get_if<SendStep>(&program.steps[id].body)) {
        sends[{program.rank, send->peer, send->tag}] = round;
      } else if (const auto* receive = std::get_if<ReceiveStep>(&program.steps[id].body)) {
        receives[{receive->peer, program.rank, receive->tag}] = round;
      }
    }
  }
  EXPECT_EQ(sends, receives);
}

// All of the rules.
template <typename AnyPlan>
void ExpectToRunInRounds(const AnyPlan& plan) {
  const auto rounds = MessageRounds(plan);
  ASSERT_TRUE(rounds.ok()) << rounds.status();
  ExpectMatched(plan.programs, *rounds);
  for (const RankProgram& program : plan.programs) ExpectInOrder(program, (*rounds)[program.rank]);
  EXPECT_EQ(RunAsStreams(plan.programs, *rounds), 0);
}

int RoundCount(const Rounds& rounds) {
  int last = kNone;
  for (const auto& rank : rounds) {
    for (const int round : rank) last = std::max(last, round);
  }
  return last + 1;
}

TEST(MessageRounds, EveryPlanRunsInRounds) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 8, 12, 16}) {
    for (int i = 0; i < testing::Problems(12); ++i) {
      auto generator = testing::GeneratorFor(absl::StrCat("rounds/", ranks, "/", i));
      const Problem problem = testing::RandomProblem(generator, 90);
      for (const std::string& strategy : AllStrategies(ranks)) {
        for (const Pass pass : {Pass::kForward, Pass::kBackward}) {
          const auto plan = MakePlan(problem, strategy, ranks, pass);
          if (!plan.ok()) continue;  // the strategy refuses the problem
          SCOPED_TRACE(absl::StrCat(strategy, " on ", ranks, " ranks: ", problem.ToString()));
          ExpectToRunInRounds(*plan);
        }
      }
    }
  }
}

TEST(MessageRounds, EveryDecodePlanRunsInRounds) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 8, 12, 16, 33}) {
    for (const DecodeMethod method : AllDecodeMethods()) {
      for (int i = 0; i < testing::Problems(12); ++i) {
        auto generator =
            testing::GeneratorFor(absl::StrCat("rounds/decode/", ranks, "/", std::string(Name(method)), "/", i));
        const DecodePlan plan = BuildDecodePlan(testing::RandomDecodeCase(method, ranks, generator).spec);
        SCOPED_TRACE(ToString(plan.spec));
        ExpectToRunInRounds(plan);
      }
    }
  }
}

// Queries, then partials: an exchange each. A tree goes up and down.
TEST(MessageRounds, DecodingTakesAsManyAsItHasHops) {
  DecodeSpec spec;
  spec.ranks = spec.heads = 8;
  spec.rows = 3;
  spec.qk_width = spec.v_width = 16;
  const auto count = [&](DecodeMethod method) {
    spec.method = method;
    return RoundCount(*MessageRounds(BuildDecodePlan(spec)));
  };
  EXPECT_EQ(count(DecodeMethod::kHead), 0);
  EXPECT_EQ(count(DecodeMethod::kTpla), 0);
  EXPECT_EQ(count(DecodeMethod::kGatherQuery), 2);
  EXPECT_EQ(count(DecodeMethod::kReplicatedQuery), 1);
  EXPECT_EQ(count(DecodeMethod::kTree), 6);
}

TEST(MessageRounds, ARingTakesOneRoundPerHop) {
  const auto plan = MakePlan(SmallProblem(*Mask::Full(64, 64), 64), "ring", 8);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(RoundCount(*MessageRounds(*plan)), 7);
  const auto gathered = MakePlan(SmallProblem(*Mask::Full(64, 64), 64), "allgather", 8);
  ASSERT_TRUE(gathered.ok());
  EXPECT_EQ(RoundCount(*MessageRounds(*gathered)), 1);
}

TEST(MessageRounds, ABrokenPlanIsRefused) {
  auto plan = MakePlan(SmallProblem(*Mask::Full(16, 16), 16), "ring", 2);
  ASSERT_TRUE(plan.ok());
  for (Step& step : plan->programs[1].steps) {
    if (auto* send = std::get_if<SendStep>(&step.body)) send->tag += 1000;
  }
  const auto rounds = MessageRounds(*plan);
  ASSERT_FALSE(rounds.ok());
  EXPECT_NE(rounds.status().message().find("rank"), std::string::npos) << rounds.status();
}

}  // namespace
}  // namespace tessera
