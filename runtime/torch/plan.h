// A plan and the problem it was made for.
#pragma once

#include <ATen/core/Tensor.h>
#include <tessera.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace tessera_torch {

// What attends what, in global tokens; at most one of documents and slices.
struct Mask {
  bool causal = false;                                // of everything, or of each document
  std::vector<int64_t> documents;                     // boundaries from 0 to the length
  std::vector<std::array<int64_t, 5>> slices;         // query begin, end, key begin, end, tessera_slice_type
  std::optional<std::pair<int64_t, int64_t>> window;  // left, right; negative: unbounded
  bool has_documents = false, has_slices = false;
};

struct Problem {
  at::ScalarType dtype = at::kFloat;
  int64_t query_tokens = 0, key_tokens = 0;
  int query_heads = 1, kv_heads = 1, qk_width = 1, v_width = 1;
  double scale = 0, soft_cap = 0;
  bool alibi = false, sink = false;
  Mask mask;
};

class Plan {
 public:
  // Local and pure: every rank makes the same plan.
  Plan(const Problem& problem, int ranks, const std::string& strategy, int ranks_per_node);
  ~Plan() { tessera_plan_destroy(plan_); }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  const tessera_plan* handle() const { return plan_; }
  const Problem& problem() const { return problem_; }
  int ranks() const { return ranks_; }
  // The global token of each local row of a tessera_side, int64 [rows].
  at::Tensor Tokens(int rank, int side) const;
  uint64_t digest() const;
  std::string Describe() const;

 private:
  Problem problem_;
  int ranks_ = 1;
  tessera_plan* plan_ = nullptr;
};

// The tessera_dtype of a tensor's; std::invalid_argument names `what` when there is none.
int32_t ToDType(const char* what, at::ScalarType type);
// What log-sum-exps are in.
inline at::ScalarType LseType(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace tessera_torch
