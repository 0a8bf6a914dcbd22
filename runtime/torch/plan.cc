#include "plan.h"

#include <ATen/Functions.h>

#include "result.h"

namespace tessera_torch {

int32_t ToDType(const char* what, at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return TESSERA_FLOAT32;
    case at::kBFloat16:
      return TESSERA_BFLOAT16;
    case at::kHalf:
      return TESSERA_FLOAT16;
    case at::kDouble:
      return TESSERA_FLOAT64;
    default:
      throw std::invalid_argument(std::string(what) + " has dtype " + c10::toString(type) +
                                  "; allowed: float32, bfloat16, float16, float64");
  }
}

Plan::Plan(const Problem& problem, int ranks, const std::string& strategy, int ranks_per_node)
    : problem_(problem), ranks_(ranks) {
  const Mask& m = problem.mask;
  if (m.has_documents && m.has_slices) throw std::invalid_argument("mask: documents and slices exclude each other");
  tessera_mask mask = TESSERA_INIT(tessera_mask);
  mask.kind = m.causal ? TESSERA_MASK_CAUSAL : TESSERA_MASK_FULL;
  if (m.has_documents) {
    mask.kind = TESSERA_MASK_DOCUMENTS;
    mask.boundaries = m.documents.data();
    mask.boundary_count = static_cast<int64_t>(m.documents.size());
    mask.document_type = m.causal ? TESSERA_SLICE_CAUSAL : TESSERA_SLICE_FULL;
  }
  std::vector<tessera_slice> slices;
  for (const auto& [q0, q1, k0, k1, type] : m.slices) slices.push_back({q0, q1, k0, k1, static_cast<int32_t>(type), 0});
  if (m.has_slices) {
    mask.kind = TESSERA_MASK_SLICES;
    mask.slices = slices.data();
    mask.slice_count = static_cast<int64_t>(slices.size());
  }
  if (m.window.has_value()) {
    mask.use_window = 1;
    std::tie(mask.window_left, mask.window_right) = *m.window;
  }
  tessera_problem given = TESSERA_INIT(tessera_problem);
  given.dtype = ToDType("the problem", problem.dtype);
  given.query_tokens = problem.query_tokens;
  given.key_tokens = problem.key_tokens;
  given.query_heads = problem.query_heads;
  given.kv_heads = problem.kv_heads;
  given.qk_width = problem.qk_width;
  given.v_width = problem.v_width;
  given.scale = static_cast<float>(problem.scale);
  given.soft_cap = static_cast<float>(problem.soft_cap);
  given.alibi = problem.alibi;
  given.sink = problem.sink;
  given.mask = &mask;
  tessera_plan_options options = TESSERA_INIT(tessera_plan_options);
  options.ranks = ranks;
  options.strategy = strategy.c_str();
  options.ranks_per_node = ranks_per_node;
  Check(tessera_plan_create(&given, &options, &plan_));
}

at::Tensor Plan::Tokens(int rank, int side) const {
  int64_t query_rows = 0, key_rows = 0;
  Check(tessera_plan_local_rows(plan_, rank, &query_rows, &key_rows));
  const int64_t rows = side == TESSERA_QUERIES ? query_rows : key_rows;
  at::Tensor tokens = at::empty({rows}, at::kLong);
  Check(tessera_plan_local_tokens(plan_, rank, side, tokens.data_ptr<int64_t>(), rows));
  return tokens;
}

uint64_t Plan::digest() const {
  uint64_t digest = 0;
  Check(tessera_plan_digest(plan_, &digest));
  return digest;
}

std::string Plan::Describe() const {
  char* text = nullptr;
  Check(tessera_plan_describe(plan_, &text));
  const std::string copy = text;
  tessera_text_free(text);
  return copy;
}

}  // namespace tessera_torch
