// DrawTimeline: a Gantt chart in plain text.
#include <algorithm>
#include <array>
#include <cmath>
#include <span>

#include "partition/print.h"

namespace tessera {
namespace {

enum Lane { kCompute, kSend, kReceive, kLanes };
constexpr std::array<const char*, kLanes> kLaneNames = {"compute", "send", "receive"};
constexpr char kIdle = '.';

struct Mark {
  char glyph;
  std::array<bool, kLanes> lanes;
};
Mark MarkOf(const StepBody& body) {
  if (std::holds_alternative<SendStep>(body)) return {'>', {false, true, false}};
  if (std::holds_alternative<ReceiveStep>(body)) return {'<', {false, false, true}};
  if (std::holds_alternative<ExchangeStep>(body)) return {'x', {false, true, true}};
  if (std::holds_alternative<AttendStep>(body) || std::holds_alternative<AttendCacheStep>(body)) {
    return {'A', {true, false, false}};
  }
  if (std::holds_alternative<MergeStep>(body)) return {'M', {true, false, false}};
  if (std::holds_alternative<ClearStep>(body)) return {'c', {true, false, false}};
  if (std::holds_alternative<DeltaStep>(body)) return {'D', {true, false, false}};
  if (std::holds_alternative<AttendBackwardStep>(body)) return {'B', {true, false, false}};
  if (std::holds_alternative<ZeroStep>(body)) return {'z', {true, false, false}};
  if (std::holds_alternative<AddStep>(body)) return {'+', {true, false, false}};
  if (std::holds_alternative<RoundStep>(body)) return {'R', {true, false, false}};
  return {'F', {true, false, false}};
}

std::string Duration(double seconds) {
  if (seconds >= 1) return absl::StrFormat("%.3g s", seconds);
  if (seconds >= 1e-3) return absl::StrFormat("%.3g ms", seconds * 1e3);
  return absl::StrFormat("%.3g us", seconds * 1e6);
}

std::string Draw(std::span<const RankProgram> programs, const char* legend, const Price& price, int columns) {
  const int width = std::max(columns, 16);
  if (!std::isfinite(price.seconds)) return "no timeline: the plan cannot run to its end\n";
  const double per_column = price.seconds > 0 ? price.seconds / width : 1;
  const auto column = [&](double seconds) {
    return std::clamp(static_cast<int>(std::floor(seconds / per_column)), 0, width - 1);
  };

  const std::string end = Duration(price.seconds);
  constexpr int kMargin = 18;  // "rank 12345 compute"
  std::string text = absl::StrFormat("%s predicted; busiest rank computes %s, communication exposed %s\n", end,
                                     Duration(price.compute_seconds), Duration(price.exposed_communication_seconds));
  text += absl::StrFormat("%-*s 0%s%s\n", kMargin, "", std::string(std::max<int>(1, width - 1 - end.size()), ' '), end);
  for (const RankProgram& program : programs) {
    std::array<std::string, kLanes> lanes;
    lanes.fill(std::string(width, kIdle));
    // Short steps must stay visible beside long ones: they are drawn last.
    std::vector<StepId> order(program.steps.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<StepId>(i);
    const std::vector<TimedStep>& times = price.timeline[program.rank];
    std::stable_sort(order.begin(), order.end(), [&](StepId a, StepId b) {
      return times[a].end_seconds - times[a].start_seconds > times[b].end_seconds - times[b].start_seconds;
    });
    for (const StepId step : order) {
      const Mark mark = MarkOf(program.steps[step].body);
      const int first = column(times[step].start_seconds);
      // A step that ends where a column begins does not reach into it.
      const int last = std::max(first, static_cast<int>(std::ceil(times[step].end_seconds / per_column - 1e-9)) - 1);
      for (int lane = 0; lane < kLanes; ++lane) {
        if (!mark.lanes[lane]) continue;
        for (int c = first; c <= std::min(last, width - 1); ++c) lanes[lane][c] = mark.glyph;
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const std::string rank = lane == kCompute ? absl::StrCat("rank ", program.rank) : "";
      text += absl::StrFormat("%-10s %-7s %s\n", rank, kLaneNames[lane], lanes[lane]);
    }
  }
  return absl::StrCat(text, legend, "  > send  < receive  x exchange  . idle\n");
}

}  // namespace

std::string DrawTimeline(const Plan& plan, const Price& price, int columns) {
  const char* legend = plan.spec.pass == Pass::kForward ? "A attend  M merge  c clear  F finish"
                                                        : "B attend backward  D delta  z zero  + add  R round";
  return Draw(plan.programs, legend, price, columns);
}

std::string DrawTimeline(const DecodePlan& plan, const Price& price, int columns) {
  return Draw(plan.programs, "A attend to the cache  M merge", price, columns);
}

}  // namespace tessera
