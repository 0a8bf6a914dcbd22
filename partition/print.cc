#include "partition/print.h"

namespace tessera {
namespace {

std::string Text(Range range) {
  return absl::StrCat("[", range.begin, ",", range.end, ")");
}
std::string Text(HeadRange heads) {
  return absl::StrCat("[", heads.begin, ",", heads.end, ")");
}
std::string Text(const Segment& segment) {
  if (segment.empty()) return "[)";
  const std::string hull = Text(Range{segment.begin, segment.last() + 1});
  return segment.stride == 1 ? hull : absl::StrCat(hull, "/", segment.stride);
}
std::string Text(const Region& region) {
  return absl::StrCat("slot ", region.slot, " rows ", Text(region.rows), " heads ", Text(region.heads));
}
std::string Text(const std::vector<ExchangePart>& parts) {
  std::string text;
  for (const ExchangePart& part : parts) {
    text += absl::StrCat(text.empty() ? "" : "; ", "rank ", part.peer, ": ", Text(part.region));
  }
  return text.empty() ? "nothing" : text;
}

std::string Text(const std::vector<MergeRows>& rows) {
  std::string text = " rows";
  for (const MergeRows& run : rows) {
    absl::StrAppend(&text, " ", Text(Range{run.source_row, run.source_row + run.count}), "->",
                    Text(Range{run.destination_row, run.destination_row + run.count}));
  }
  return text;
}

std::string Details(const SendStep& send) {
  return absl::StrCat("to ", send.peer, " tag ", send.tag, " ", Text(send.region));
}
std::string Details(const ReceiveStep& receive) {
  return absl::StrCat("from ", receive.peer, " tag ", receive.tag, " ", Text(receive.region));
}
std::string Details(const ExchangeStep& exchange) {
  return absl::StrCat("in group ", exchange.group, " sends {", Text(exchange.sends), "} receives {",
                      Text(exchange.receives), "}");
}
template <typename Attend>
requires requires(const Attend& attend) {
  attend.tiles;
}
std::string Details(const Attend& attend) {
  std::string text;
  for (const Tile& tile : attend.tiles) absl::StrAppend(&text, "q", Text(tile.queries), " k", Text(tile.keys), " ");
  return absl::StrCat(text, "heads ", Text(attend.heads));
}
std::string Details(const ClearStep& clear) {
  return absl::StrCat("slots ", clear.partial_output, ",", clear.partial_lse, " rows ", Text(clear.rows));
}
std::string Details(const MergeStep& merge) {
  return absl::StrCat("slots ", merge.source_output, ",", merge.source_lse, " into ", merge.output, ",", merge.lse,
                      Text(merge.rows));
}
std::string Details(const FinishStep& finish) {
  return absl::StrCat("slots ", finish.partial_output, ",", finish.partial_lse, " into ", finish.result, ",",
                      finish.result_lse);
}
std::string Details(const DeltaStep& delta) {
  return absl::StrCat("slots ", delta.output, ",", delta.output_gradient, " into ", delta.delta);
}
std::string Details(const ZeroStep& zero) {
  return absl::StrCat("slot ", zero.slot, " rows ", Text(zero.rows));
}
std::string Details(const AddStep& add) {
  return absl::StrCat("slot ", add.source, " into ", add.destination, Text(add.rows));
}
std::string Details(const RoundStep& round) {
  return absl::StrCat("slot ", round.source, " into ", round.destination);
}
std::string Details(const AttendCacheStep& attend) {
  return absl::StrCat("query slot ", attend.query, " into ", attend.partial_output, ",", attend.partial_lse, " heads ",
                      Text(attend.heads));
}

const char* Name(SequenceMethod method) {
  switch (method) {
    case SequenceMethod::kRing:
      return "ring";
    case SequenceMethod::kAllGather:
      return "allgather";
    case SequenceMethod::kTree:
      return "tree";
  }
  return "unknown";
}

}  // namespace

std::string ToString(const PlanSpec& spec) {
  return absl::StrCat(spec.strategy, spec.pass == Pass::kBackward ? " backward" : "", " (", Name(spec.method), " on ",
                      spec.mesh.ToString(), ") of ", spec.problem.ToString());
}

std::string ToString(const RankProgram& program, StepId step) {
  const Step& s = program.steps[step];
  std::string text = absl::StrCat(std::string(KindName(s.body)), " ",
                                  std::visit([](const auto& body) { return Details(body); }, s.body));
  for (size_t i = 0; i < s.after.size(); ++i) absl::StrAppend(&text, i == 0 ? " after " : ",", s.after[i]);
  return text;
}

}  // namespace tessera
