// One machine-readable record per benchmark sample; the tables people read are views of the same numbers.
#pragma once

#include <string>

#include "launcher/run_plan.h"

namespace tessera::launcher {

struct BenchSample {
  std::string strategy;
  int ranks = 1;
  int threads = 1;
  RunReport report;
  Verdict verdict;
  Errors plain;
};

// One line of JSON, schema "tessera-bench-1".
std::string ToJsonLine(const BenchSample& sample, const PlanSpec& spec);

}  // namespace tessera::launcher
