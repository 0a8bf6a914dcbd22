// What Verify() asks of slots, and of the regions that steps name, in one rank's program. Private to Verify().
#pragma once

#include <algorithm>
#include <initializer_list>
#include <set>
#include <string>

#include "partition/verify_internal.h"

namespace tessera::verify {

inline constexpr int64_t kMaxRows = int64_t{1} << 48;  // so that sums of rows, and bytes below, cannot overflow
inline constexpr double kMaxSlotBytes = 0x1p62;

class ProgramChecks {
 protected:
  ProgramChecks(const PlanView& plan, const RankProgram& program)
      : plan_(plan), problem_(plan.problem), program_(program) {}

  Status Error(const std::string& what) const {
    const std::string where = step_ < 0 ? absl::StrCat("rank ", program_.rank) : Where(program_, step_);
    return absl::InvalidArgumentError(absl::StrCat("structure: ", where, " ", what));
  }

  Status CheckSlots() {
    const SlotId external = plan_.externals;
    if (static_cast<int>(program_.slots.size()) < external) {
      return Error(absl::StrCat("lacks some of the ", external, " external slots"));
    }
    for (SlotId id = 0; id < static_cast<int>(program_.slots.size()); ++id) {
      const Slot& slot = program_.slots[id];
      const auto bad = [&](const std::string& what) { return Error(absl::StrCat("slot ", id, " ", what)); };
      const bool keys = IsOnKeySide(slot.content);
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
      if (slot.external != (id < external)) return bad(slot.external ? "is external" : "is not external");
      if (slot.external) TESSERA_RETURN_IF_ERROR(CheckExternal(id));
    }
    return absl::OkStatus();
  }
  Status CheckExternal(SlotId id) {
    const Slot expected = plan_.external(program_.rank, id).slot;
    const Slot& slot = program_.slots[id];
    if (slot == expected) return absl::OkStatus();
    return Error(absl::StrCat("slot ", id, " must be the external ", std::string(Name(expected.content)), " with ",
                              expected.rows, " rows and heads ", Text(expected.heads), ", but is ",
                              std::string(Name(slot.content)), " with ", slot.rows, " rows and heads ",
                              Text(slot.heads)));
  }
  Status CheckGroups() {
    std::set<std::vector<int>> seen;
    for (size_t g = 0; g < program_.groups.size(); ++g) {
      const std::vector<int>& group = program_.groups[g];
      const auto bad = [&](const std::string& what) { return Error(absl::StrCat("group ", g, " ", what)); };
      std::vector<int> sorted = group;
      std::sort(sorted.begin(), sorted.end());
      if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) return bad("names a rank twice");
      if (sorted.empty() || sorted.front() < 0 || sorted.back() >= plan_.ranks) {
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
    if (writes && slot < plan_.inputs) return Error(absl::StrCat(role, " slot ", slot, " is a read-only input"));
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
    if (writes && region.slot < plan_.inputs) {
      return Error(absl::StrCat(role, " slot ", region.slot, " is a read-only input"));
    }
    TESSERA_RETURN_IF_ERROR(CheckRows(region.slot, region.rows, role));
    return CheckHeads(region.slot, region.heads, role);
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
  Status CheckSameRows(std::initializer_list<SlotId> slots) const {
    const int64_t rows = program_.slots[*slots.begin()].rows;
    for (const SlotId slot : slots) {
      if (program_.slots[slot].rows == rows) continue;
      return Error(absl::StrCat("takes ", rows, " rows but slot ", slot, " has ", program_.slots[slot].rows));
    }
    return absl::OkStatus();
  }

  const PlanView& plan_;
  const Problem& problem_;
  const RankProgram& program_;
  StepId step_ = kNone;
};

}  // namespace tessera::verify
