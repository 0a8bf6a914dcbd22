// Stage 1 of Verify(), for one rank: everything a step names exists and has the shape the step needs.
#include <algorithm>
#include <set>

#include "partition/verify_internal.h"

namespace tessera::verify {
namespace {

constexpr int kMaxTag = 1 << 20;                // what communicators promise
constexpr int64_t kMaxRows = int64_t{1} << 48;  // so that sums of rows, and bytes below, cannot overflow
constexpr double kMaxSlotBytes = 0x1p62;

class ProgramChecker {
 public:
  ProgramChecker(const Plan& plan, const RankProgram& program)
      : plan_(plan), problem_(plan.spec.problem), program_(program) {}

  Status Check() {
    TESSERA_RETURN_IF_ERROR(CheckSlots());
    TESSERA_RETURN_IF_ERROR(CheckGroups());
    for (step_ = 0; step_ < static_cast<int>(program_.steps.size()); ++step_) {
      for (const StepId dependency : program_.steps[step_].after) {
        if (dependency < 0 || dependency >= step_) {
          return Error(absl::StrCat("depends on step ", dependency, ", which is not an earlier step"));
        }
      }
      TESSERA_RETURN_IF_ERROR(
          std::visit([&](const auto& body) { return CheckBody(body); }, program_.steps[step_].body));
    }
    return absl::OkStatus();
  }

 private:
  Status Error(const std::string& what) const {
    const std::string where = step_ < 0 ? absl::StrCat("rank ", program_.rank) : Where(program_, step_);
    return absl::InvalidArgumentError(absl::StrCat("structure: ", where, " ", what));
  }

  Status CheckSlots() {
    if (program_.slots.size() < kExternalSlots) return Error("lacks the five external slots");
    for (SlotId id = 0; id < static_cast<int>(program_.slots.size()); ++id) {
      const Slot& slot = program_.slots[id];
      const auto bad = [&](const std::string& what) { return Error(absl::StrCat("slot ", id, " ", what)); };
      const bool keys = slot.content == SlotContent::kKey || slot.content == SlotContent::kValue;
      const bool staging = slot.content == SlotContent::kStaging;
      const int heads = staging ? 1 : keys ? problem_.kv_heads : problem_.query_heads;
      if (slot.rows < 0 || slot.rows > kMaxRows) return bad(absl::StrCat("has ", slot.rows, " rows"));
      if (slot.heads.begin < 0 || slot.heads.end < slot.heads.begin || slot.heads.end > heads) {
        return bad(absl::StrCat("has heads ", Text(slot.heads), " of ", heads));
      }
      const int width = WidthOf(problem_, slot.content), element_bytes = ElementBytesOf(problem_, slot.content);
      if (slot.width != width) return bad(absl::StrCat("has width ", slot.width, " instead of ", width));
      if (slot.element_bytes != element_bytes) {
        return bad(absl::StrCat("has ", slot.element_bytes, "-byte elements instead of ", element_bytes));
      }
      if (static_cast<double>(slot.rows) * slot.heads.size() * width * element_bytes > kMaxSlotBytes) {
        return bad("has more bytes than can be counted");
      }
      if (slot.external != (id < kExternalSlots)) return bad(slot.external ? "is external" : "is not external");
      if (slot.external) TESSERA_RETURN_IF_ERROR(CheckExternal(id));
    }
    return absl::OkStatus();
  }
  Status CheckExternal(SlotId id) {
    constexpr SlotContent kContents[] = {SlotContent::kQuery, SlotContent::kKey, SlotContent::kValue,
                                         SlotContent::kResult, SlotContent::kResultLse};
    const bool keys = id == kKeySlot || id == kValueSlot;
    const Layout& layout = keys ? plan_.spec.key_layout : plan_.spec.query_layout;
    const int64_t rows = layout.rows(program_.rank);
    const HeadRange heads{0, keys ? problem_.kv_heads : problem_.query_heads};
    const Slot& slot = program_.slots[id];
    if (slot.content == kContents[id] && slot.rows == rows && slot.heads == heads) return absl::OkStatus();
    return Error(absl::StrCat("slot ", id, " must be the external ", std::string(Name(kContents[id])), " with ", rows,
                              " rows and heads ", Text(heads), ", but is ", std::string(Name(slot.content)), " with ",
                              slot.rows, " rows and heads ", Text(slot.heads)));
  }
  Status CheckGroups() {
    std::set<std::vector<int>> seen;
    for (size_t g = 0; g < program_.groups.size(); ++g) {
      const std::vector<int>& group = program_.groups[g];
      const auto bad = [&](const std::string& what) { return Error(absl::StrCat("group ", g, " ", what)); };
      std::vector<int> sorted = group;
      std::sort(sorted.begin(), sorted.end());
      if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) return bad("names a rank twice");
      if (sorted.empty() || sorted.front() < 0 || sorted.back() >= plan_.spec.mesh.size()) {
        return bad("is empty or names a rank outside the mesh");
      }
      if (!std::binary_search(sorted.begin(), sorted.end(), program_.rank)) return bad("does not contain the rank");
      if (!seen.insert(group).second) return bad("repeats an earlier group");
    }
    return absl::OkStatus();
  }

  bool Exists(SlotId slot) const { return slot >= 0 && slot < static_cast<int>(program_.slots.size()); }
  // A slot that exists, holds `content` and, when the step changes it, is not one of the caller's inputs.
  Status CheckSlot(SlotId slot, SlotContent content, bool writes, const char* role) const {
    if (!Exists(slot)) return Error(absl::StrCat(role, " slot ", slot, " does not exist"));
    if (program_.slots[slot].content != content) {
      return Error(absl::StrCat(role, " slot ", slot, " holds ", std::string(Name(program_.slots[slot].content))));
    }
    if (writes && slot <= kValueSlot) return Error(absl::StrCat(role, " slot ", slot, " is a read-only input"));
    return absl::OkStatus();
  }
  Status CheckRows(SlotId slot, Range rows, const std::string& role) const {
    if (rows.begin >= 0 && rows.begin <= rows.end && rows.end <= program_.slots[slot].rows) return absl::OkStatus();
    return Error(
        absl::StrCat(role, " rows ", Text(rows), " exceed the ", program_.slots[slot].rows, " rows of slot ", slot));
  }
  Status CheckHeads(SlotId slot, HeadRange heads, const std::string& role) const {
    const HeadRange have = program_.slots[slot].heads;
    if (heads.begin >= have.begin && heads.begin <= heads.end && heads.end <= have.end) return absl::OkStatus();
    return Error(absl::StrCat(role, " heads ", Text(heads), " exceed heads ", Text(have), " of slot ", slot));
  }
  Status CheckRegion(const Region& region, bool writes, const std::string& role) const {
    if (!Exists(region.slot)) return Error(absl::StrCat(role, " slot ", region.slot, " does not exist"));
    if (program_.slots[region.slot].content == SlotContent::kStaging) {
      return Error(absl::StrCat(role, " slot ", region.slot, " is staging"));
    }
    if (writes && region.slot <= kValueSlot) {
      return Error(absl::StrCat(role, " slot ", region.slot, " is a read-only input"));
    }
    TESSERA_RETURN_IF_ERROR(CheckRows(region.slot, region.rows, role));
    return CheckHeads(region.slot, region.heads, role);
  }

  template <typename Message>
  Status CheckMessage(const Message& message, bool writes) const {
    if (message.peer < 0 || message.peer >= plan_.spec.mesh.size() || message.peer == program_.rank) {
      return Error(absl::StrCat("names peer ", message.peer, ", which is not another rank"));
    }
    if (message.tag < 0 || message.tag >= kMaxTag) return Error(absl::StrCat("has tag ", message.tag));
    TESSERA_RETURN_IF_ERROR(CheckRegion(message.region, writes, "region"));
    if (message.region.heads != program_.slots[message.region.slot].heads) {
      return Error(absl::StrCat("moves heads ", Text(message.region.heads), " of slot ", message.region.slot,
                                ", not all of them"));
    }
    if (message.region.rows.empty() || message.region.heads.empty()) return Error("moves nothing");
    return absl::OkStatus();
  }
  Status CheckBody(const SendStep& send) const { return CheckMessage(send, false); }
  Status CheckBody(const ReceiveStep& receive) const { return CheckMessage(receive, true); }

  Status CheckParts(const ExchangeStep& exchange, const std::vector<ExchangePart>& parts, SlotId staging,
                    const std::string& role, bool writes) const {
    const std::vector<int>& group = program_.groups[exchange.group];
    auto position = group.begin();
    int64_t bytes = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const std::string part = absl::StrCat(role, " part ", i);
      position = std::find(position, group.end(), parts[i].peer);
      if (position == group.end()) {
        return Error(absl::StrCat(part, " names peer ", parts[i].peer, ", not a member of the group or out of order"));
      }
      TESSERA_RETURN_IF_ERROR(CheckRegion(parts[i].region, writes, part));
      if (parts[i].peer != program_.rank) bytes += BytesOf(program_, parts[i].region);
    }
    if (staging == kNone) return CheckInPlace(parts, role);
    TESSERA_RETURN_IF_ERROR(CheckSlot(staging, SlotContent::kStaging, true, "staging"));
    if (program_.slots[staging].bytes() < bytes) {
      return Error(absl::StrCat("needs ", bytes, " bytes of ", role, " staging but slot ", staging, " has ",
                                program_.slots[staging].bytes()));
    }
    return absl::OkStatus();
  }
  // Without staging every peer's parts must be one contiguous piece, and all pieces in one slot.
  Status CheckInPlace(const std::vector<ExchangePart>& parts, const std::string& role) const {
    const ExchangePart* previous = nullptr;
    int64_t previous_end = 0;
    for (const ExchangePart& part : parts) {
      const Region& region = part.region;
      if (part.peer == program_.rank || BytesOf(program_, region) == 0) continue;
      const HeadRange all = program_.slots[region.slot].heads;
      const int64_t begin = region.rows.begin * all.size() + region.heads.begin - all.begin;  // in row-heads
      const bool contiguous = region.heads == all || region.rows.size() == 1;
      const bool follows = previous == nullptr || previous->peer != part.peer || previous_end == begin;
      if (!contiguous || !follows || (previous != nullptr && previous->region.slot != region.slot)) {
        return Error(absl::StrCat("has no ", role, " staging, but its parts for rank ", part.peer,
                                  " are not one contiguous piece of one slot"));
      }
      previous = &part;
      previous_end = begin + region.rows.size() * region.heads.size();
    }
    return absl::OkStatus();
  }
  Status CheckBody(const ExchangeStep& exchange) const {
    if (exchange.group < 0 || exchange.group >= static_cast<int>(program_.groups.size())) {
      return Error(absl::StrCat("uses group ", exchange.group, ", which does not exist"));
    }
    TESSERA_RETURN_IF_ERROR(CheckParts(exchange, exchange.sends, exchange.send_staging, "send", false));
    return CheckParts(exchange, exchange.receives, exchange.receive_staging, "receive", true);
  }

  Status CheckTileSide(int64_t row, const Segment& tokens, int64_t limit, std::span<const SlotId> slots,
                       const std::string& role) const {
    if (tokens.count <= 0 || tokens.stride < 1 || tokens.begin < 0 || tokens.begin >= limit ||
        tokens.count - 1 > (limit - 1 - tokens.begin) / tokens.stride) {
      return Error(absl::StrCat(role, " tokens ", Text(tokens), " are not within ", limit, " tokens"));
    }
    if (row < 0 || row > kMaxRows) return Error(absl::StrCat(role, " row ", row, " does not exist"));
    for (const SlotId slot : slots) TESSERA_RETURN_IF_ERROR(CheckRows(slot, {row, row + tokens.count}, role));
    return absl::OkStatus();
  }
  Status CheckBody(const AttendStep& attend) const {
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.query, SlotContent::kQuery, false, "query"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.key, SlotContent::kKey, false, "key"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.value, SlotContent::kValue, false, "value"));
    TESSERA_RETURN_IF_ERROR(CheckPartials(attend.partial_output, attend.partial_lse, "partial"));
    if (attend.heads.empty()) return Error("attends no heads");
    for (const SlotId slot : {attend.query, attend.partial_output, attend.partial_lse}) {
      TESSERA_RETURN_IF_ERROR(CheckHeads(slot, attend.heads, "attended"));
    }
    for (const SlotId slot : {attend.key, attend.value}) {
      TESSERA_RETURN_IF_ERROR(CheckHeads(slot, KeyHeadsOf(problem_, attend.heads), "attended key/value"));
    }
    if (attend.tiles.empty()) return Error("attends no tiles");
    const SlotId query_slots[] = {attend.query, attend.partial_output, attend.partial_lse};
    const SlotId key_slots[] = {attend.key, attend.value};
    for (size_t i = 0; i < attend.tiles.size(); ++i) {
      const Tile& tile = attend.tiles[i];
      TESSERA_RETURN_IF_ERROR(CheckTileSide(tile.query_row, tile.queries, problem_.query_tokens, query_slots,
                                            absl::StrCat("tile ", i, " query")));
      TESSERA_RETURN_IF_ERROR(
          CheckTileSide(tile.key_row, tile.keys, problem_.key_tokens, key_slots, absl::StrCat("tile ", i, " key")));
    }
    return absl::OkStatus();
  }

  Status CheckPartials(SlotId output, SlotId lse, const char* role) const {
    TESSERA_RETURN_IF_ERROR(CheckSlot(output, SlotContent::kPartialOutput, true, role));
    return CheckSlot(lse, SlotContent::kPartialLse, true, role);
  }
  Status CheckSameHeads(std::initializer_list<SlotId> slots) const {
    const HeadRange heads = program_.slots[*slots.begin()].heads;
    for (const SlotId slot : slots) {
      if (program_.slots[slot].heads != heads) {
        return Error(absl::StrCat("combines heads ", Text(heads), " with heads ", Text(program_.slots[slot].heads),
                                  " of slot ", slot));
      }
    }
    return absl::OkStatus();
  }
  Status CheckBody(const ClearStep& clear) const {
    TESSERA_RETURN_IF_ERROR(CheckPartials(clear.partial_output, clear.partial_lse, "partial"));
    TESSERA_RETURN_IF_ERROR(CheckRows(clear.partial_output, clear.rows, "cleared"));
    return CheckRows(clear.partial_lse, clear.rows, "cleared");
  }
  Status CheckBody(const MergeStep& merge) const {
    TESSERA_RETURN_IF_ERROR(CheckPartials(merge.source_output, merge.source_lse, "source"));
    TESSERA_RETURN_IF_ERROR(CheckPartials(merge.output, merge.lse, "destination"));
    TESSERA_RETURN_IF_ERROR(CheckSameHeads({merge.source_output, merge.source_lse, merge.output, merge.lse}));
    if (merge.source_output == merge.output || merge.source_lse == merge.lse) return Error("merges a slot into itself");
    for (const MergeRows& run : merge.rows) {
      if (run.count < 0 || std::max({run.count, run.source_row, run.destination_row}) > kMaxRows) {
        return Error(absl::StrCat("merges ", run.count, " rows from ", run.source_row, " to ", run.destination_row));
      }
      const Range source{run.source_row, run.source_row + run.count};
      const Range destination{run.destination_row, run.destination_row + run.count};
      for (const SlotId slot : {merge.source_output, merge.source_lse}) {
        TESSERA_RETURN_IF_ERROR(CheckRows(slot, source, "merged source"));
      }
      for (const SlotId slot : {merge.output, merge.lse}) {
        TESSERA_RETURN_IF_ERROR(CheckRows(slot, destination, "merged destination"));
      }
    }
    return absl::OkStatus();
  }
  Status CheckBody(const FinishStep& finish) const {
    TESSERA_RETURN_IF_ERROR(CheckPartials(finish.partial_output, finish.partial_lse, "partial"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(finish.result, SlotContent::kResult, true, "result"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(finish.result_lse, SlotContent::kResultLse, true, "result"));
    TESSERA_RETURN_IF_ERROR(
        CheckSameHeads({finish.partial_output, finish.partial_lse, finish.result, finish.result_lse}));
    const int64_t rows = program_.slots[finish.partial_output].rows;
    for (const SlotId slot : {finish.partial_lse, finish.result, finish.result_lse}) {
      if (program_.slots[slot].rows != rows) {
        return Error(absl::StrCat("finishes ", rows, " rows but slot ", slot, " has ", program_.slots[slot].rows));
      }
    }
    return absl::OkStatus();
  }

  template <typename Backward>
  Status CheckBody(const Backward&) const {
    return absl::UnimplementedError("structure: backward steps are not checked yet");
  }

  const Plan& plan_;
  const Problem& problem_;
  const RankProgram& program_;
  StepId step_ = kNone;
};

}  // namespace

Status CheckProgram(const Plan& plan, const RankProgram& program) {
  return ProgramChecker(plan, program).Check();
}

}  // namespace tessera::verify
