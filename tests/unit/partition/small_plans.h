// Small problems, the plans that planners make of them, and ways to break a plan.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "partition/planner.h"
#include "partition/verify.h"

namespace tessera {

inline Problem SmallProblem(Mask mask, int64_t tokens) {
  Problem problem;
  problem.query_tokens = problem.key_tokens = tokens;
  problem.query_heads = 4;
  problem.kv_heads = 2;
  problem.qk_width = 8;
  problem.v_width = 6;
  problem.mask = std::move(mask);
  return problem;
}

inline std::vector<Mask> Masks(int64_t tokens) {
  const std::vector<int64_t> documents{0, tokens / 5, tokens / 5, tokens / 2, tokens};
  return {Mask(),
          *Mask::Full(tokens, tokens),
          *Mask::Causal(tokens, tokens),
          *Mask::Causal(tokens, tokens, {3, 0}),
          *Mask::Documents(tokens, documents, SliceType::kCausal),
          *Mask::Documents(tokens, documents, SliceType::kBiCausal)};
}

// Those that suit the rank count, and some that refuse most.
inline std::vector<std::string> AllStrategies(int ranks) {
  std::vector<std::string> names = StrategyNames(ranks);
  for (const char* name : {"tree", "ulysses", "allgather", "double-ring:2", "grid"}) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  }
  return names;
}

inline StatusOr<PlanSpec> MakeSpec(const Problem& problem, const std::string& strategy, int ranks,
                                   Pass pass = Pass::kForward) {
  PlanOptions options;
  options.strategy = strategy;
  options.ranks = ranks;
  options.pass = pass;
  return MakePlanSpec(problem, options);
}
inline StatusOr<Plan> MakePlan(const Problem& problem, const std::string& strategy, int ranks,
                               Pass pass = Pass::kForward) {
  TESSERA_ASSIGN_OR_RETURN(const PlanSpec spec, MakeSpec(problem, strategy, ranks, pass));
  return BuildPlan(spec);
}

template <typename Body>
Body& BodyOf(Plan& plan, int rank, StepId step) {
  return std::get<Body>(plan.programs[rank].steps[step].body);
}
inline void Erase(RankProgram& program, StepId step) {
  program.steps.erase(program.steps.begin() + step);
  for (Step& other : program.steps) {
    std::erase(other.after, step);
    for (StepId& after : other.after) after -= after > step;
  }
}

inline void ExpectError(const Plan& plan, const std::string& text) {
  const Status status = Verify(plan);
  EXPECT_FALSE(status.ok()) << "expected: " << text;
  EXPECT_NE(std::string(status.message()).find(text), std::string::npos) << status.message() << "\nexpected: " << text;
}

// Changes one thing that matters in a step that moves data between ranks; false when it moves nothing, nothing when the
// step is of another kind.
inline std::optional<bool> MutateMessage(StepBody& body, std::mt19937& random) {
  const bool first = random() % 2 == 0;
  if (auto* send = std::get_if<SendStep>(&body)) {
    (first ? send->tag : send->peer) += 1;
    return true;
  }
  if (auto* receive = std::get_if<ReceiveStep>(&body)) {
    if (first) {
      ++receive->region.rows.begin;
    } else {
      receive->tag += 1;
    }
    return true;
  }
  if (auto* exchange = std::get_if<ExchangeStep>(&body)) {
    if (exchange->sends.empty()) return false;
    Region& region = exchange->sends[random() % exchange->sends.size()].region;
    ++(first ? region.rows.begin : region.rows.end);
    return true;
  }
  return std::nullopt;
}

}  // namespace tessera
