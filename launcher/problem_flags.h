// Flags that several subcommands share, and how they become a mask, a problem and plans.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "launcher/command.h"
#include "launcher/pass_runner.h"
#include "partition/planner.h"
#include "partition/problem.h"

namespace tessera::launcher {

inline constexpr int64_t kMostTokens = int64_t{1} << 40;  // the largest count of tokens a flag may state

struct ProblemFlags {
  int64_t tokens = 0;
  int heads = 1;
  int kv_heads = 0;  // 0 = heads
  int width = 64;
  int v_width = 0;  // 0 = width
  std::string dtype = "bf16";
  std::string mask = "causal";
  float scale = 0;
  float soft_cap = 0;
};
void AddMaskFlags(CLI::App& command, ProblemFlags& flags);   // --mask --scale --soft-cap
void AddShapeFlags(CLI::App& command, ProblemFlags& flags);  // --seq --heads --kv-heads --dim --v-dim --dtype

struct ExecutionFlags {
  Device device = Device::kCpu;
  std::string strategy = "auto";
  std::string kernel;
  int threads = 0;
  double deadline_seconds = 0;
};
void AddStrategyFlag(CLI::App& command, ExecutionFlags& flags);
void AddExecutionFlags(CLI::App& command, ExecutionFlags& flags);  // --kernel --threads --deadline
void AddDeviceFlag(CLI::App& command, ExecutionFlags& flags);      // --device

// "causal", "full", "window:W" (each query attends its last W tokens, itself included) or "documents:FILE" (causal
// within each document; FILE lists the boundaries as integers). InvalidArgument names the text and what is allowed.
StatusOr<Mask> ParseMask(const std::string& text, int64_t query_tokens, int64_t key_tokens);
// The file that a mask is read from, empty when there is none.
std::string DocumentsFile(const std::string& mask);

// The validated problem that the shape and mask flags describe.
StatusOr<Problem> MakeProblem(const ProblemFlags& flags);
// Adds the mask and score flags to a problem whose shape is known.
Status CompleteProblem(const ProblemFlags& flags, Problem& problem);

// FailedPrecondition, with every CPU kernel's reason, when none (or not the one called `kernel`) serves the problem.
Status CheckKernel(const Problem& problem, const std::string& kernel);

// A strategy and its plan, or why there is none.
struct Candidate {
  std::string strategy;
  StatusOr<PlanSpec> spec;
};
// The name for tables; "auto" says what it chose.
std::string Label(const Candidate& candidate);
// One candidate, or with "all" one per name the planner knows.
std::vector<Candidate> ResolveStrategies(const Problem& problem, const std::string& strategy, int ranks,
                                         int ranks_per_node);

// The reason none of the candidates can run, OK when one can.
Status AnyUsable(const std::vector<Candidate>& candidates);

}  // namespace tessera::launcher
