#include "runtime/engine/trace.h"

#include <array>
#include <nlohmann/json.hpp>

namespace tessera {

std::string ToChromeTrace(const std::vector<Trace>& ranks) {
  constexpr std::array<const char*, 3> lanes = {"compute", "send", "receive"};
  nlohmann::json events = nlohmann::json::array();
  for (const Trace& trace : ranks) {
    events.push_back({{"ph", "M"},
                      {"pid", trace.rank},
                      {"name", "process_name"},
                      {"args", {{"name", "rank " + std::to_string(trace.rank)}}}});
    for (size_t lane = 0; lane < lanes.size(); ++lane) {
      events.push_back({{"ph", "M"},
                        {"pid", trace.rank},
                        {"tid", lane},
                        {"name", "thread_name"},
                        {"args", {{"name", lanes[lane]}}}});
    }
    for (const TraceEvent& event : trace.events) {
      events.push_back({{"ph", "X"},
                        {"pid", trace.rank},
                        {"tid", static_cast<int>(event.lane)},
                        {"name", event.name},
                        {"ts", static_cast<double>(event.begin_ns) / 1e3},
                        {"dur", static_cast<double>(event.end_ns - event.begin_ns) / 1e3},
                        {"args", {{"step", event.step}, {"bytes", event.bytes}}}});
    }
  }
  return nlohmann::json{{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}}.dump();
}

}  // namespace tessera
