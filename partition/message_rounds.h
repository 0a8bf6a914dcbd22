// Rounds for communicators that know no tags and run what they are given in order, such as NCCL on a stream.
#pragma once

#include <vector>

#include "partition/decode.h"
#include "partition/plan.h"
#include "runtime/base/status.h"

namespace tessera {

// The round of every step that communicates, [rank][step]; kNone for compute steps. Rounds start at 0. When every rank
// starts its rounds in ascending order, each with all its messages at once and as soon as what they depend on is done,
// no rank ever waits in a circle: the two ends of a message (all members of an exchange) have the same round, and
// whatever a step waits for, directly or through compute steps in program order, lies in an earlier one. It is the
// earliest such round. Pure; needs the programs of all ranks. Errors are those of Verify for messages without a
// counterpart and for deadlocks.
StatusOr<std::vector<std::vector<int>>> MessageRounds(const Plan& plan);
StatusOr<std::vector<std::vector<int>>> MessageRounds(const DecodePlan& plan);

}  // namespace tessera
