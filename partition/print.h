// Plans for people and tools: one line per step, JSON, and a text timeline.
#pragma once

#include <string>

#include "partition/cost.h"
#include "partition/decode.h"
#include "partition/plan.h"

namespace tessera {

std::string ToString(const PlanSpec& spec);                     // one line
std::string ToString(const RankProgram& program, StepId step);  // "attend q[0,128) k[64,128) heads [0,4) after 3"
std::string ToJson(const Plan& plan);                           // schema "tessera-plan-1"
std::string ToJson(const DecodePlan& plan);                     // schema "tessera-decode-plan-1"
// Parses what ToJson wrote; Verify() it before use. InvalidArgument names the field.
StatusOr<Plan> PlanFromJson(std::string_view text);
// One row per rank and lane (compute, send, receive), `columns` characters wide, with a legend.
std::string DrawTimeline(const Plan& plan, const Price& price, int columns);
std::string DrawTimeline(const DecodePlan& plan, const Price& price, int columns);

}  // namespace tessera
