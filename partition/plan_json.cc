// PlanFromJson. Nothing here throws: every value's type is checked before it is read, and the first mismatch is kept.
#include "partition/plan_json.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "partition/print.h"

namespace tessera {
namespace {

using Json = nlohmann::json;

// Layouts keep a bit per token while they are checked; a document must not make that fail.
constexpr int64_t kMostTokens = int64_t{1} << 32;

// A value in the document with its path. After the first error every read gives a default, so that callers check once.
class Reader {
 public:
  Reader(const Json* json, std::string path, Status* status) : json_(json), path_(std::move(path)), status_(status) {}

  bool ok() const { return status_->ok(); }
  void Fail(const std::string& what) const {
    if (ok()) *status_ = absl::InvalidArgumentError(absl::StrCat("plan JSON: field '", path_, "' ", what));
  }

  Reader operator[](const char* name) const {
    const std::string path = path_.empty() ? name : absl::StrCat(path_, ".", name);
    if (ok() && !json_->is_object()) Fail("must be an object");
    const auto found = ok() ? json_->find(name) : Json::const_iterator();
    if (ok() && found == json_->end()) Reader(nullptr, path, status_).Fail("is missing");
    return Reader(ok() ? &*found : nullptr, path, status_);
  }
  size_t size() const {
    if (ok() && !json_->is_array()) Fail("must be an array");
    return ok() ? json_->size() : 0;
  }
  Reader operator[](size_t i) const {
    return Reader(ok() ? &(*json_)[i] : nullptr, absl::StrCat(path_, "[", i, "]"), status_);
  }
  // All elements, or none after an error.
  template <typename T, typename Read>
  std::vector<T> List(Read read) const {
    std::vector<T> list;
    for (size_t i = 0, n = size(); i < n && ok(); ++i) list.push_back(read((*this)[i]));
    return list;
  }

  int64_t Integer(int64_t least, int64_t most) const {
    const bool whole =
        ok() && json_->is_number_integer() &&
        (!json_->is_number_unsigned() || json_->get<uint64_t>() <= uint64_t{std::numeric_limits<int64_t>::max()});
    const int64_t value = whole ? json_->get<int64_t>() : 0;
    if (whole && value >= least && value <= most) return value;
    Fail(absl::StrCat("must be an integer in [", least, ", ", most, "]"));
    return 0;
  }
  int64_t Int64() const { return Integer(std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()); }
  int Int() const {
    return static_cast<int>(Integer(std::numeric_limits<int>::min(), std::numeric_limits<int>::max()));
  }
  float Float() const {
    if (ok() && json_->is_number()) return json_->get<float>();
    Fail("must be a number");
    return 0;
  }
  bool Bool() const {
    if (ok() && json_->is_boolean()) return json_->get<bool>();
    Fail("must be true or false");
    return false;
  }
  std::string String() const {
    if (ok() && json_->is_string()) return json_->get<std::string>();
    Fail("must be a string");
    return {};
  }
  // The index of the string among `names`.
  template <typename Names>
  size_t Choice(const Names& names) const {
    const std::string name = String();
    for (size_t i = 0; i < names.size(); ++i) {
      if (names[i] == name) return i;
    }
    Fail(absl::StrCat("is '", name, "', which is not known"));
    return 0;
  }
  template <size_t n>
  std::array<int64_t, n> Integers() const {
    std::array<int64_t, n> values{};
    if (size() != n) Fail(absl::StrCat("must have ", n, " integers"));
    for (size_t i = 0; i < n && ok(); ++i) values[i] = (*this)[i].Int64();
    return values;
  }

 private:
  const Json* json_;  // null after an error
  std::string path_;
  Status* status_;
};

Range ReadRange(const Reader& json) {
  const auto [begin, end] = json.Integers<2>();
  return {begin, end};
}
HeadRange ReadHeads(const Reader& json) {
  if (json.size() != 2) json.Fail("must have 2 integers");
  if (!json.ok()) return {};
  return {json[size_t{0}].Int(), json[size_t{1}].Int()};
}
Segment ReadSegment(const Reader& json) {
  const auto [begin, count, stride] = json.Integers<3>();
  return {begin, count, stride};
}
Region ReadRegion(const Reader& json) {
  return {json["slot"].Int(), ReadRange(json["rows"]), ReadHeads(json["heads"])};
}
ExchangePart ReadPart(const Reader& json) {
  return {json["peer"].Int(), ReadRegion(json["region"])};
}
Tile ReadTile(const Reader& json) {
  return {json["query_row"].Int64(), ReadSegment(json["queries"]), json["key_row"].Int64(), ReadSegment(json["keys"])};
}
MergeRows ReadMergeRows(const Reader& json) {
  return {json["source_row"].Int64(), json["destination_row"].Int64(), json["count"].Int64()};
}

StepBody ReadBody(const Reader& json) {
  const std::string kind = json["kind"].String();
  if (kind == "send") return SendStep{json["peer"].Int(), json["tag"].Int(), ReadRegion(json["region"])};
  if (kind == "receive") return ReceiveStep{json["peer"].Int(), json["tag"].Int(), ReadRegion(json["region"])};
  if (kind == "exchange") {
    return ExchangeStep{json["group"].Int(), json["sends"].List<ExchangePart>(ReadPart),
                        json["receives"].List<ExchangePart>(ReadPart), json["send_staging"].Int(),
                        json["receive_staging"].Int()};
  }
  if (kind == "attend") {
    return AttendStep{json["query"].Int(),
                      json["key"].Int(),
                      json["value"].Int(),
                      json["partial_output"].Int(),
                      json["partial_lse"].Int(),
                      ReadHeads(json["heads"]),
                      json["tiles"].List<Tile>(ReadTile)};
  }
  if (kind == "clear") {
    return ClearStep{json["partial_output"].Int(), json["partial_lse"].Int(), ReadRange(json["rows"])};
  }
  if (kind == "merge") {
    return MergeStep{json["source_output"].Int(), json["source_lse"].Int(), json["output"].Int(), json["lse"].Int(),
                     json["rows"].List<MergeRows>(ReadMergeRows)};
  }
  if (kind == "finish") {
    return FinishStep{json["partial_output"].Int(), json["partial_lse"].Int(), json["result"].Int(),
                      json["result_lse"].Int()};
  }
  if (kind == "delta") {
    return DeltaStep{json["output"].Int(), json["output_gradient"].Int(), json["delta"].Int()};
  }
  if (kind == "attend_backward") {
    return AttendBackwardStep{json["query"].Int(),
                              json["key"].Int(),
                              json["value"].Int(),
                              json["output_gradient"].Int(),
                              json["lse"].Int(),
                              json["delta"].Int(),
                              json["query_gradient"].Int(),
                              json["key_gradient"].Int(),
                              json["value_gradient"].Int(),
                              ReadHeads(json["heads"]),
                              json["tiles"].List<Tile>(ReadTile)};
  }
  if (kind == "zero") return ZeroStep{json["slot"].Int(), ReadRange(json["rows"])};
  if (kind == "add") {
    return AddStep{json["source"].Int(), json["destination"].Int(), json["rows"].List<MergeRows>(ReadMergeRows)};
  }
  if (kind == "round") return RoundStep{json["source"].Int(), json["destination"].Int()};
  if (kind == "attend_cache") {
    return AttendCacheStep{json["query"].Int(), json["partial_output"].Int(), json["partial_lse"].Int(),
                           ReadHeads(json["heads"])};
  }
  json["kind"].Fail(absl::StrCat("is '", kind, "', which is not known"));
  return {};
}
int ReadInt(const Reader& json) {
  return json.Int();
}
Step ReadStep(const Reader& json) {
  return {ReadBody(json), json["after"].List<StepId>(ReadInt)};
}

Slot ReadSlot(const Reader& json) {
  std::array<std::string_view, static_cast<size_t>(SlotContent::kValueGradient) + 1> contents;
  for (size_t i = 0; i < contents.size(); ++i) contents[i] = Name(static_cast<SlotContent>(i));
  return {static_cast<SlotContent>(json["content"].Choice(contents)),
          json["external"].Bool(),
          json["rows"].Int64(),
          ReadHeads(json["heads"]),
          json["width"].Int(),
          json["element_bytes"].Int()};
}
RankProgram ReadProgram(const Reader& json) {
  return {json["rank"].Int(), json["slots"].List<Slot>(ReadSlot), json["steps"].List<Step>(ReadStep),
          json["groups"].List<std::vector<int>>([](const Reader& group) { return group.List<int>(ReadInt); })};
}

Band ReadBand(const Reader& json) {
  return {ReadRange(json["queries"]), ReadRange(json["keys"]),
          json["min_offset"].Integer(-kUnboundedDiagonal, kUnboundedDiagonal),
          json["max_offset"].Integer(-kUnboundedDiagonal, kUnboundedDiagonal)};
}
Problem ReadProblem(const Reader& json) {
  Problem problem;
  problem.query_tokens = json["query_tokens"].Integer(0, kMostTokens);
  problem.key_tokens = json["key_tokens"].Integer(0, kMostTokens);
  problem.query_heads = json["query_heads"].Int();
  problem.kv_heads = json["kv_heads"].Int();
  problem.qk_width = json["qk_width"].Int();
  problem.v_width = json["v_width"].Int();
  const std::optional<DType> dtype = ParseDType(json["dtype"].String());
  if (!dtype.has_value()) json["dtype"].Fail("is not a known element type");
  problem.dtype = dtype.value_or(DType::kFloat32);
  problem.score = {json["scale"].Float(), json["soft_cap"].Float(), json["alibi"].Bool(), json["sink"].Bool()};
  const std::vector<Band> bands = json["mask"].List<Band>(ReadBand);
  if (!json.ok()) return problem;
  auto mask = plan_json::MaskFromBands(problem.query_tokens, problem.key_tokens, bands);
  if (!mask.ok()) {
    json["mask"].Fail(absl::StrCat("is not a mask: ", mask.status().message()));
  } else {
    problem.mask = *std::move(mask);
  }
  return problem;
}
Layout ReadLayout(const Reader& json, int64_t tokens) {
  auto segments = json.List<std::vector<Segment>>([](const Reader& rank) { return rank.List<Segment>(ReadSegment); });
  if (!json.ok()) return {};
  auto layout = Layout::FromSegments(tokens, std::move(segments));
  if (layout.ok()) return *std::move(layout);
  json.Fail(absl::StrCat("is not a layout: ", layout.status().message()));
  return {};
}

}  // namespace

StatusOr<Plan> PlanFromJson(std::string_view text) {
  const Json document = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) return absl::InvalidArgumentError("plan JSON: the text is not JSON");
  Status status;
  const Reader json(&document, "", &status);
  if (!document.is_object()) return absl::InvalidArgumentError("plan JSON: the document is not an object");
  if (const std::string schema = json["schema"].String(); status.ok() && schema != plan_json::kSchema) {
    json["schema"].Fail(absl::StrCat("is '", schema, "' instead of '", std::string(plan_json::kSchema), "'"));
  }
  Plan plan;
  PlanSpec& spec = plan.spec;
  spec.pass = static_cast<Pass>(json["pass"].Choice(plan_json::kPasses));
  spec.strategy = json["strategy"].String();
  spec.method = static_cast<SequenceMethod>(json["method"].Choice(plan_json::kMethods));
  const Reader mesh = json["mesh"];
  spec.mesh = {mesh["head_ranks"].Int(), mesh["inner_ranks"].Int(), mesh["outer_ranks"].Int()};
  spec.problem = ReadProblem(json["problem"]);
  spec.query_layout = ReadLayout(json["query_layout"], spec.problem.query_tokens);
  spec.key_layout = ReadLayout(json["key_layout"], spec.problem.key_tokens);
  plan.programs = json["programs"].List<RankProgram>(ReadProgram);
  if (!status.ok()) return status;
  return plan;
}

}  // namespace tessera
