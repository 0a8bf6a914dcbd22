#include "partition/plan.h"

#include <array>

#include "absl/strings/str_format.h"
#include "partition/digest.h"

namespace tessera {

std::string Mesh::ToString() const {
  return absl::StrFormat("head%d x inner%d x outer%d", head_ranks, inner_ranks, outer_ranks);
}

std::string_view Name(SlotContent content) {
  constexpr std::array<std::string_view, 16> names = {"query",
                                                      "key",
                                                      "value",
                                                      "partial_output",
                                                      "partial_lse",
                                                      "result",
                                                      "result_lse",
                                                      "staging",
                                                      "output_gradient",
                                                      "delta",
                                                      "partial_query_gradient",
                                                      "partial_key_gradient",
                                                      "partial_value_gradient",
                                                      "query_gradient",
                                                      "key_gradient",
                                                      "value_gradient"};
  return names[static_cast<size_t>(content)];
}

std::string_view KindName(const StepBody& body) {
  constexpr std::array<std::string_view, 13> names = {"send",  "receive", "exchange",    "attend",          "clear",
                                                      "merge", "finish",  "delta",       "attend_backward", "zero",
                                                      "add",   "round",   "attend_cache"};
  static_assert(std::variant_size_v<StepBody> == names.size());
  return names[body.index()];
}

bool IsCompute(const StepBody& body) {
  return !std::holds_alternative<SendStep>(body) && !std::holds_alternative<ReceiveStep>(body) &&
         !std::holds_alternative<ExchangeStep>(body);
}

int64_t RankProgram::SlotBytes() const {
  int64_t bytes = 0;
  for (const Slot& slot : slots) {
    if (!slot.external) bytes += slot.bytes();
  }
  return bytes;
}

namespace {

// Raised when planners emit other steps for the same spec: ranks running different releases then disagree at start-up
// instead of hanging later.
constexpr int kPlannerVersion = 1;

}  // namespace

uint64_t Hash(const Problem& problem) {
  Digest digest;
  digest.Add(problem.query_tokens).Add(problem.key_tokens).Add(problem.query_heads).Add(problem.kv_heads);
  digest.Add(problem.qk_width).Add(problem.v_width).Add(problem.dtype);
  digest.Add(problem.score.scale).Add(problem.score.soft_cap).Add(problem.score.alibi).Add(problem.score.sink);
  digest.Add(problem.mask.bands().size());
  for (const Band& band : problem.mask.bands()) {
    digest.Add(band.queries).Add(band.keys).Add(band.min_offset).Add(band.max_offset);
  }
  return digest.Value();
}

uint64_t Hash(const PlanSpec& spec) {
  Digest digest;
  digest.Add(kPlannerVersion).Add(spec.pass).Add(Hash(spec.problem));
  digest.Add(spec.mesh.head_ranks).Add(spec.mesh.inner_ranks).Add(spec.mesh.outer_ranks);
  digest.Add(spec.method).Add(spec.strategy).Add(spec.query_layout).Add(spec.key_layout);
  return digest.Value();
}

}  // namespace tessera
