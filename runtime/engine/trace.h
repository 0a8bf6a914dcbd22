// What ran when, in the Chrome trace event format (load it in Perfetto or chrome://tracing).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tessera {

enum class TraceLane : uint8_t { kCompute, kSend, kReceive };

struct TraceEvent {
  int step = 0;
  TraceLane lane = TraceLane::kCompute;
  std::string name;      // "attend", "send", ...
  int64_t begin_ns = 0;  // steady clock, since the start of the execution
  int64_t end_ns = 0;
  int64_t bytes = 0;  // payload of communication steps
};

struct Trace {
  int rank = 0;
  std::vector<TraceEvent> events;
};

// One JSON document {"traceEvents": [...]}: a process per rank, a thread per lane, microseconds.
std::string ToChromeTrace(const std::vector<Trace>& ranks);

}  // namespace tessera
