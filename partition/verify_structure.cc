// Stage 1 of Verify(), for one rank: everything a step names exists and has the shape the step needs.
#include <algorithm>
#include <optional>

#include "partition/verify_internal.h"
#include "partition/verify_program_checks.h"

namespace tessera::verify {
namespace {

constexpr int kMaxTag = 1 << 20;  // what communicators promise

class ProgramChecker : private ProgramChecks {
 public:
  ProgramChecker(const PlanView& plan, const RankProgram& program) : ProgramChecks(plan, program) {}

  Status Check() {
    TESSERA_RETURN_IF_ERROR(CheckSlots());
    TESSERA_RETURN_IF_ERROR(CheckGroups());
    bool attended_cache = false;
    for (step_ = 0; step_ < static_cast<int>(program_.steps.size()); ++step_) {
      for (const StepId dependency : program_.steps[step_].after) {
        if (dependency < 0 || dependency >= step_) {
          return Error(absl::StrCat("depends on step ", dependency, ", which is not an earlier step"));
        }
      }
      if (!BelongsTo(plan_.kind, program_.steps[step_].body)) {
        constexpr const char* kKinds[] = {"the forward pass", "the backward pass", "decoding"};
        return Error(absl::StrCat("is no step of ", kKinds[static_cast<int>(plan_.kind)]));
      }
      TESSERA_RETURN_IF_ERROR(
          std::visit([&](const auto& body) { return CheckBody(body); }, program_.steps[step_].body));
      const bool attends_cache = std::holds_alternative<AttendCacheStep>(program_.steps[step_].body);
      if (attends_cache && attended_cache) return Error("attends to the cache a second time");
      attended_cache = attended_cache || attends_cache;
    }
    return absl::OkStatus();
  }

 private:
  static bool BelongsTo(PlanView::Kind kind, const StepBody& body) {
    if (!IsCompute(body)) return true;
    const bool backward = std::holds_alternative<DeltaStep>(body) || std::holds_alternative<AttendBackwardStep>(body) ||
                          std::holds_alternative<ZeroStep>(body) || std::holds_alternative<AddStep>(body) ||
                          std::holds_alternative<RoundStep>(body);
    const bool decode = std::holds_alternative<AttendCacheStep>(body);
    switch (kind) {
      case PlanView::Kind::kForward:
        return !backward && !decode;
      case PlanView::Kind::kBackward:
        return backward;
      case PlanView::Kind::kDecode:
        return decode || std::holds_alternative<MergeStep>(body);
    }
    return false;
  }

  template <typename Message>
  Status CheckMessage(const Message& message, bool writes) const {
    if (message.peer < 0 || message.peer >= plan_.ranks || message.peer == program_.rank) {
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

  Status CheckTileSide(int64_t row, const Segment& tokens, int64_t limit, std::initializer_list<SlotId> slots,
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
    return CheckTiles(attend.heads, attend.tiles, {attend.query, attend.partial_output, attend.partial_lse},
                      {attend.key, attend.value});
  }
  // Query slots must have the heads and the tiles' query rows, key slots those heads' key/value heads and the key rows.
  Status CheckTiles(HeadRange heads, const std::vector<Tile>& tiles, std::initializer_list<SlotId> query_slots,
                    std::initializer_list<SlotId> key_slots) const {
    if (heads.empty()) return Error("attends no heads");
    for (const SlotId slot : query_slots) TESSERA_RETURN_IF_ERROR(CheckHeads(slot, heads, "attended"));
    for (const SlotId slot : key_slots) {
      TESSERA_RETURN_IF_ERROR(CheckHeads(slot, KeyHeadsOf(problem_, heads), "attended key/value"));
    }
    if (tiles.empty()) return Error("attends no tiles");
    for (size_t i = 0; i < tiles.size(); ++i) {
      const Tile& tile = tiles[i];
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
    return CheckRuns(merge.rows, {merge.source_output, merge.source_lse}, {merge.output, merge.lse}, "merged");
  }
  Status CheckRuns(const std::vector<MergeRows>& rows, std::initializer_list<SlotId> sources,
                   std::initializer_list<SlotId> destinations, const std::string& role) const {
    for (const MergeRows& run : rows) {
      if (run.count < 0 || std::max({run.count, run.source_row, run.destination_row}) > kMaxRows) {
        return Error(absl::StrCat(run.count, " ", role, " rows from ", run.source_row, " to ", run.destination_row));
      }
      for (const SlotId slot : sources) {
        TESSERA_RETURN_IF_ERROR(CheckRows(slot, {run.source_row, run.source_row + run.count}, role + " source"));
      }
      for (const SlotId slot : destinations) {
        TESSERA_RETURN_IF_ERROR(
            CheckRows(slot, {run.destination_row, run.destination_row + run.count}, role + " destination"));
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
    return CheckSameRows({finish.partial_output, finish.partial_lse, finish.result, finish.result_lse});
  }

  Status CheckBody(const DeltaStep& delta) const {
    TESSERA_RETURN_IF_ERROR(CheckSlot(delta.output, SlotContent::kResult, false, "output"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(delta.output_gradient, SlotContent::kOutputGradient, false, "output gradient"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(delta.delta, SlotContent::kDelta, true, "delta"));
    TESSERA_RETURN_IF_ERROR(CheckSameHeads({delta.delta, delta.output, delta.output_gradient}));
    return CheckSameRows({delta.delta, delta.output, delta.output_gradient});
  }
  Status CheckBody(const AttendBackwardStep& attend) const {
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.query, SlotContent::kQuery, false, "query"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.key, SlotContent::kKey, false, "key"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.value, SlotContent::kValue, false, "value"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.output_gradient, SlotContent::kOutputGradient, false, "output gradient"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.lse, SlotContent::kResultLse, false, "log-sum-exp"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.delta, SlotContent::kDelta, false, "delta"));
    TESSERA_RETURN_IF_ERROR(CheckGradient(attend.query_gradient, SlotContent::kPartialQueryGradient));
    TESSERA_RETURN_IF_ERROR(CheckGradient(attend.key_gradient, SlotContent::kPartialKeyGradient));
    TESSERA_RETURN_IF_ERROR(CheckGradient(attend.value_gradient, SlotContent::kPartialValueGradient));
    const auto query_slots = {attend.query, attend.output_gradient, attend.lse, attend.delta, attend.query_gradient};
    const auto key_slots = {attend.key, attend.value, attend.key_gradient, attend.value_gradient};
    return CheckTiles(attend.heads, attend.tiles, query_slots, key_slots);
  }
  Status CheckGradient(SlotId slot, SlotContent content) const { return CheckSlot(slot, content, true, "gradient"); }
  Status CheckPartialGradient(SlotId slot, const char* role) const {
    if (!Exists(slot)) return Error(absl::StrCat(role, " slot ", slot, " does not exist"));
    if (Rounded(program_.slots[slot].content).has_value()) return absl::OkStatus();
    return Error(absl::StrCat(role, " slot ", slot, " holds ", std::string(Name(program_.slots[slot].content))));
  }
  // What becomes of a partial gradient; nothing of other contents.
  static std::optional<SlotContent> Rounded(SlotContent content) {
    switch (content) {
      case SlotContent::kPartialQueryGradient:
        return SlotContent::kQueryGradient;
      case SlotContent::kPartialKeyGradient:
        return SlotContent::kKeyGradient;
      case SlotContent::kPartialValueGradient:
        return SlotContent::kValueGradient;
      default:
        return std::nullopt;
    }
  }
  Status CheckBody(const ZeroStep& zero) const {
    TESSERA_RETURN_IF_ERROR(CheckPartialGradient(zero.slot, "zeroed"));
    return CheckRows(zero.slot, zero.rows, "zeroed");
  }
  Status CheckBody(const AddStep& add) const {
    TESSERA_RETURN_IF_ERROR(CheckPartialGradient(add.source, "source"));
    TESSERA_RETURN_IF_ERROR(CheckSlot(add.destination, program_.slots[add.source].content, true, "destination"));
    if (add.source == add.destination) return Error("adds a slot to itself");
    TESSERA_RETURN_IF_ERROR(CheckHeads(add.destination, program_.slots[add.source].heads, "added"));
    return CheckRuns(add.rows, {add.source}, {add.destination}, "added");
  }
  Status CheckBody(const RoundStep& round) const {
    TESSERA_RETURN_IF_ERROR(CheckPartialGradient(round.source, "source"));
    TESSERA_RETURN_IF_ERROR(
        CheckSlot(round.destination, *Rounded(program_.slots[round.source].content), true, "destination"));
    TESSERA_RETURN_IF_ERROR(CheckSameHeads({round.source, round.destination}));
    return CheckSameRows({round.source, round.destination});
  }
  Status CheckBody(const AttendCacheStep& attend) const {
    TESSERA_RETURN_IF_ERROR(CheckSlot(attend.query, SlotContent::kQuery, false, "query"));
    TESSERA_RETURN_IF_ERROR(CheckPartials(attend.partial_output, attend.partial_lse, "partial"));
    TESSERA_RETURN_IF_ERROR(CheckSameHeads({attend.query, attend.partial_output, attend.partial_lse}));
    TESSERA_RETURN_IF_ERROR(CheckSameRows({attend.query, attend.partial_output, attend.partial_lse}));
    if (attend.heads.empty()) return Error("attends no heads");
    if (attend.heads == program_.slots[attend.query].heads) return absl::OkStatus();
    return Error(absl::StrCat("attends heads ", Text(attend.heads), " but its slots have heads ",
                              Text(program_.slots[attend.query].heads)));
  }
};

}  // namespace

Status CheckProgram(const PlanView& plan, const RankProgram& program) {
  return ProgramChecker(plan, program).Check();
}

}  // namespace tessera::verify
