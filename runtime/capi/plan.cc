// Problems, masks and plans of the C interface.
#include "partition/plan.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "partition/planner.h"
#include "partition/print.h"
#include "runtime/capi/boundary.h"
#include "runtime/capi/handles.h"

namespace tessera::capi {
namespace {

Status RejectField(const char* field, int64_t value, const char* allowed) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, "; it must be ", allowed));
}

StatusOr<SliceType> ToSliceType(const std::string& field, int32_t type) {
  switch (type) {
    case TESSERA_SLICE_FULL:
      return SliceType::kFull;
    case TESSERA_SLICE_CAUSAL:
      return SliceType::kCausal;
    case TESSERA_SLICE_INVERSE_CAUSAL:
      return SliceType::kInverseCausal;
    case TESSERA_SLICE_BI_CAUSAL:
      return SliceType::kBiCausal;
  }
  return RejectField(field.c_str(), type, "a tessera_slice_type (0 to 3)");
}

// The memory of a list; NULL is allowed when it is empty.
template <typename Element>
StatusOr<std::span<const Element>> ToSpan(const char* name, const Element* data, int64_t count) {
  if (count < 0) return RejectField(absl::StrCat("mask: number of ", name).c_str(), count, "at least 0");
  if (count > 0) TESSERA_RETURN_IF_ERROR(CheckNotNull(absl::StrCat("mask: ", name).c_str(), data));
  return std::span<const Element>(data, static_cast<size_t>(count));
}

StatusOr<Mask> ToMask(const tessera_mask& mask, int64_t query_tokens, int64_t key_tokens) {
  const Window window = mask.use_window != 0 ? Window{mask.window_left, mask.window_right} : Window{};
  switch (mask.kind) {
    case TESSERA_MASK_FULL: {
      const MaskSlice all[] = {{{0, query_tokens}, {0, key_tokens}, SliceType::kFull}};
      return Mask::FromSlices(query_tokens, key_tokens, all, window);
    }
    case TESSERA_MASK_CAUSAL:
      return Mask::Causal(query_tokens, key_tokens, window);
    case TESSERA_MASK_DOCUMENTS: {
      if (query_tokens != key_tokens) {
        return absl::InvalidArgumentError(
            absl::StrCat("mask: documents need as many keys as queries, not ", key_tokens, " and ", query_tokens));
      }
      TESSERA_ASSIGN_OR_RETURN(const SliceType type, ToSliceType("mask: document_type", mask.document_type));
      TESSERA_ASSIGN_OR_RETURN(const auto boundaries, ToSpan("boundaries", mask.boundaries, mask.boundary_count));
      return Mask::Documents(query_tokens, boundaries, type, window);
    }
    case TESSERA_MASK_SLICES: {
      TESSERA_ASSIGN_OR_RETURN(const auto given, ToSpan("slices", mask.slices, mask.slice_count));
      std::vector<MaskSlice> slices;
      for (const tessera_slice& slice : given) {
        TESSERA_ASSIGN_OR_RETURN(const SliceType type,
                                 ToSliceType(absl::StrCat("mask: type of slice ", slices.size()), slice.type));
        slices.push_back({{slice.query_begin, slice.query_end}, {slice.key_begin, slice.key_end}, type});
      }
      return Mask::FromSlices(query_tokens, key_tokens, slices, window);
    }
  }
  return RejectField("mask: kind", mask.kind, "a tessera_mask_kind (0 to 3)");
}

StatusOr<Problem> ToProblem(const tessera_problem& given) {
  Problem problem;
  problem.query_tokens = given.query_tokens;
  problem.key_tokens = given.key_tokens;
  problem.query_heads = given.query_heads;
  problem.kv_heads = given.kv_heads;
  problem.qk_width = given.qk_width;
  problem.v_width = given.v_width;
  const std::optional<DType> dtype = ToDType(given.dtype);
  if (!dtype.has_value()) return RejectField("problem: dtype", given.dtype, "a tessera_dtype (0 to 3)");
  problem.dtype = *dtype;
  problem.score = {given.scale, given.soft_cap, given.alibi != 0, given.sink != 0};
  TESSERA_RETURN_IF_ERROR(Validate(problem));  // lengths first: errors of a mask are about the mask
  tessera_mask mask = TESSERA_INIT(tessera_mask);
  if (given.mask != nullptr) {
    TESSERA_RETURN_IF_ERROR(CheckStruct("mask", given.mask));
    mask = *given.mask;
  }
  TESSERA_ASSIGN_OR_RETURN(problem.mask, ToMask(mask, problem.query_tokens, problem.key_tokens));
  return problem;
}

Status CheckRank(const tessera_plan& plan, int rank) {
  const int ranks = plan.spec.mesh.size();
  if (rank >= 0 && rank < ranks) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("rank is ", rank, "; it must be from 0 to ", ranks - 1));
}

Status GiveText(const std::string& text, char** out) {
  char* const copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy == nullptr) return absl::ResourceExhaustedError("out of memory");
  std::memcpy(copy, text.c_str(), text.size() + 1);
  *out = copy;
  return absl::OkStatus();
}

}  // namespace
}  // namespace tessera::capi

using namespace tessera;
using namespace tessera::capi;

tessera_result tessera_plan_create(const tessera_problem* problem, const tessera_plan_options* options,
                                   tessera_plan** plan) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckStruct("problem", problem));
    TESSERA_RETURN_IF_ERROR(CheckStruct("options", options));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("plan", plan));
    TESSERA_ASSIGN_OR_RETURN(const Problem converted, ToProblem(*problem));
    PlanOptions plan_options;
    if (options->strategy != nullptr) plan_options.strategy = options->strategy;
    plan_options.ranks = options->ranks;
    plan_options.ranks_per_node = options->ranks_per_node;
    TESSERA_ASSIGN_OR_RETURN(PlanSpec spec, MakePlanSpec(converted, plan_options));
    *plan = new tessera_plan{std::move(spec)};
    return absl::OkStatus();
  });
}

void tessera_plan_destroy(tessera_plan* plan) {
  delete plan;
}

tessera_result tessera_plan_ranks(const tessera_plan* plan, int* ranks) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("plan", plan));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("ranks", ranks));
    *ranks = plan->spec.mesh.size();
    return absl::OkStatus();
  });
}

tessera_result tessera_plan_local_rows(const tessera_plan* plan, int rank, int64_t* query_rows, int64_t* key_rows) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("plan", plan));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("query_rows", query_rows));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("key_rows", key_rows));
    TESSERA_RETURN_IF_ERROR(CheckRank(*plan, rank));
    *query_rows = plan->spec.query_layout.rows(rank);
    *key_rows = plan->spec.key_layout.rows(rank);
    return absl::OkStatus();
  });
}

tessera_result tessera_plan_local_tokens(const tessera_plan* plan, int rank, int side, int64_t* tokens,
                                         int64_t capacity) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("plan", plan));
    TESSERA_RETURN_IF_ERROR(CheckRank(*plan, rank));
    if (side != TESSERA_QUERIES && side != TESSERA_KEYS) return RejectField("side", side, "a tessera_side (0 or 1)");
    const Layout& layout = side == TESSERA_QUERIES ? plan->spec.query_layout : plan->spec.key_layout;
    if (capacity < layout.rows(rank)) {
      return absl::InvalidArgumentError(
          absl::StrCat("capacity is ", capacity, "; rank ", rank, " has ", layout.rows(rank), " rows"));
    }
    if (layout.rows(rank) > 0) TESSERA_RETURN_IF_ERROR(CheckNotNull("tokens", tokens));
    for (const Segment& segment : layout.segments(rank)) {
      for (int64_t row = 0; row < segment.count; ++row) *tokens++ = segment.token(row);
    }
    return absl::OkStatus();
  });
}

tessera_result tessera_plan_digest(const tessera_plan* plan, uint64_t* digest) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("plan", plan));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("digest", digest));
    *digest = Hash(plan->spec);
    return absl::OkStatus();
  });
}

tessera_result tessera_plan_describe(const tessera_plan* plan, char** text) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("plan", plan));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("text", text));
    return GiveText(ToString(plan->spec), text);
  });
}

tessera_result tessera_plan_json(const tessera_plan* plan, int pass, char** text) {
  return Guard([&]() -> Status {
    TESSERA_RETURN_IF_ERROR(CheckNotNull("plan", plan));
    TESSERA_RETURN_IF_ERROR(CheckNotNull("text", text));
    if (pass != TESSERA_FORWARD && pass != TESSERA_BACKWARD)
      return RejectField("pass", pass, "a tessera_pass (0 or 1)");
    PlanSpec spec = plan->spec;
    spec.pass = pass == TESSERA_FORWARD ? Pass::kForward : Pass::kBackward;
    return GiveText(ToJson(BuildPlan(spec)), text);
  });
}

void tessera_text_free(char* text) {
  std::free(text);
}
