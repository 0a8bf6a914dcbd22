// ToJson: plans as documents of schema "tessera-plan-1". Ranges are [begin, end], segments [begin, count, stride].
#include <nlohmann/json.hpp>

#include "partition/plan_json.h"
#include "partition/print.h"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;

Json Encode(Range range) {
  return {range.begin, range.end};
}
Json Encode(HeadRange heads) {
  return {heads.begin, heads.end};
}
Json Encode(const Segment& segment) {
  return {segment.begin, segment.count, segment.stride};
}
Json Encode(const Region& region) {
  return {{"slot", region.slot}, {"rows", Encode(region.rows)}, {"heads", Encode(region.heads)}};
}
Json Encode(const std::vector<ExchangePart>& parts) {
  Json list = Json::array();
  for (const ExchangePart& part : parts) list.push_back({{"peer", part.peer}, {"region", Encode(part.region)}});
  return list;
}

template <typename Message>
Json EncodeMessage(const Message& message) {
  return {{"peer", message.peer}, {"tag", message.tag}, {"region", Encode(message.region)}};
}
Json Encode(const SendStep& send) {
  return EncodeMessage(send);
}
Json Encode(const ReceiveStep& receive) {
  return EncodeMessage(receive);
}
Json Encode(const ExchangeStep& exchange) {
  return {{"group", exchange.group},
          {"sends", Encode(exchange.sends)},
          {"receives", Encode(exchange.receives)},
          {"send_staging", exchange.send_staging},
          {"receive_staging", exchange.receive_staging}};
}
Json Encode(const std::vector<Tile>& tiles) {
  Json list = Json::array();
  for (const Tile& tile : tiles) {
    list.push_back({{"query_row", tile.query_row},
                    {"queries", Encode(tile.queries)},
                    {"key_row", tile.key_row},
                    {"keys", Encode(tile.keys)}});
  }
  return list;
}
Json Encode(const std::vector<MergeRows>& rows) {
  Json list = Json::array();
  for (const MergeRows& run : rows) {
    list.push_back({{"source_row", run.source_row}, {"destination_row", run.destination_row}, {"count", run.count}});
  }
  return list;
}
Json Encode(const AttendStep& attend) {
  return {{"query", attend.query},
          {"key", attend.key},
          {"value", attend.value},
          {"partial_output", attend.partial_output},
          {"partial_lse", attend.partial_lse},
          {"heads", Encode(attend.heads)},
          {"tiles", Encode(attend.tiles)}};
}
Json Encode(const ClearStep& clear) {
  return {{"partial_output", clear.partial_output}, {"partial_lse", clear.partial_lse}, {"rows", Encode(clear.rows)}};
}
Json Encode(const MergeStep& merge) {
  return {{"source_output", merge.source_output},
          {"source_lse", merge.source_lse},
          {"output", merge.output},
          {"lse", merge.lse},
          {"rows", Encode(merge.rows)}};
}
Json Encode(const FinishStep& finish) {
  return {{"partial_output", finish.partial_output},
          {"partial_lse", finish.partial_lse},
          {"result", finish.result},
          {"result_lse", finish.result_lse}};
}
Json Encode(const DeltaStep& delta) {
  return {{"output", delta.output}, {"output_gradient", delta.output_gradient}, {"delta", delta.delta}};
}
Json Encode(const AttendBackwardStep& attend) {
  return {{"query", attend.query},
          {"key", attend.key},
          {"value", attend.value},
          {"output_gradient", attend.output_gradient},
          {"lse", attend.lse},
          {"delta", attend.delta},
          {"query_gradient", attend.query_gradient},
          {"key_gradient", attend.key_gradient},
          {"value_gradient", attend.value_gradient},
          {"heads", Encode(attend.heads)},
          {"tiles", Encode(attend.tiles)}};
}
Json Encode(const ZeroStep& zero) {
  return {{"slot", zero.slot}, {"rows", Encode(zero.rows)}};
}
Json Encode(const AddStep& add) {
  return {{"source", add.source}, {"destination", add.destination}, {"rows", Encode(add.rows)}};
}
Json Encode(const RoundStep& round) {
  return {{"source", round.source}, {"destination", round.destination}};
}
Json Encode(const AttendCacheStep& attend) {
  return {{"query", attend.query},
          {"partial_output", attend.partial_output},
          {"partial_lse", attend.partial_lse},
          {"heads", Encode(attend.heads)}};
}
Json Encode(const Step& step) {
  Json json{{"kind", std::string(KindName(step.body))}};
  json.update(std::visit([](const auto& body) { return Encode(body); }, step.body));
  json["after"] = step.after;
  return json;
}

Json Encode(const Slot& slot) {
  return {{"content", std::string(Name(slot.content))},
          {"external", slot.external},
          {"rows", slot.rows},
          {"heads", Encode(slot.heads)},
          {"width", slot.width},
          {"element_bytes", slot.element_bytes}};
}
Json Encode(const RankProgram& program) {
  Json slots = Json::array(), steps = Json::array();
  for (const Slot& slot : program.slots) slots.push_back(Encode(slot));
  for (const Step& step : program.steps) steps.push_back(Encode(step));
  return {{"rank", program.rank}, {"slots", std::move(slots)}, {"steps", std::move(steps)}, {"groups", program.groups}};
}

Json Encode(const Problem& problem) {
  Json bands = Json::array();
  for (const Band& band : problem.mask.bands()) {
    bands.push_back({{"queries", Encode(band.queries)},
                     {"keys", Encode(band.keys)},
                     {"min_offset", band.min_offset},
                     {"max_offset", band.max_offset}});
  }
  return {{"query_tokens", problem.query_tokens},
          {"key_tokens", problem.key_tokens},
          {"query_heads", problem.query_heads},
          {"kv_heads", problem.kv_heads},
          {"qk_width", problem.qk_width},
          {"v_width", problem.v_width},
          {"dtype", std::string(Name(problem.dtype))},
          {"mask", std::move(bands)},
          {"scale", problem.score.scale},
          {"soft_cap", problem.score.soft_cap},
          {"alibi", problem.score.alibi},
          {"sink", problem.score.sink}};
}
Json Encode(const Layout& layout) {
  Json ranks = Json::array();
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    Json segments = Json::array();
    for (const Segment& segment : layout.segments(rank)) segments.push_back(Encode(segment));
    ranks.push_back(std::move(segments));
  }
  return ranks;
}

}  // namespace

std::string ToJson(const Plan& plan) {
  const PlanSpec& spec = plan.spec;
  Json programs = Json::array();
  for (const RankProgram& program : plan.programs) programs.push_back(Encode(program));
  const Json json{{"schema", std::string(plan_json::kSchema)},
                  {"pass", std::string(plan_json::kPasses[static_cast<size_t>(spec.pass)])},
                  {"strategy", spec.strategy},
                  {"method", std::string(plan_json::kMethods[static_cast<size_t>(spec.method)])},
                  {"mesh",
                   {{"head_ranks", spec.mesh.head_ranks},
                    {"inner_ranks", spec.mesh.inner_ranks},
                    {"outer_ranks", spec.mesh.outer_ranks}}},
                  {"problem", Encode(spec.problem)},
                  {"query_layout", Encode(spec.query_layout)},
                  {"key_layout", Encode(spec.key_layout)},
                  {"programs", std::move(programs)}};
  // A strategy name that is not UTF-8 is a caller's mistake; replacing its bytes beats throwing.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string ToJson(const DecodePlan& plan) {
  const DecodeSpec& spec = plan.spec;
  Json programs = Json::array();
  for (const RankProgram& program : plan.programs) programs.push_back(Encode(program));
  return Json{{"schema", "tessera-decode-plan-1"},
              {"method", std::string(Name(spec.method))},
              {"ranks", spec.ranks},
              {"groups", spec.groups},
              {"rows", spec.rows},
              {"heads", spec.heads},
              {"kv_heads", spec.kv_heads},
              {"qk_width", spec.qk_width},
              {"v_width", spec.v_width},
              {"dtype", std::string(Name(spec.dtype))},
              {"programs", std::move(programs)}}
      .dump();
}

}  // namespace tessera
