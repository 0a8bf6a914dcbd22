// What is to be computed, independent of any machine.
#pragma once

#include <cstdint>
#include <string>

#include "partition/mask.h"
#include "runtime/base/dtype.h"

namespace tessera {

struct ScoreOptions {
  float scale = 0.0f;     // 0 = qk_width^-1/2
  float soft_cap = 0.0f;  // 0 = off; s <- soft_cap * tanh(s / soft_cap)
  bool alibi = false;     // slopes [query_heads] fp32 are given at execution
  bool sink = false;      // sink logits [query_heads] fp32 are given at execution
  friend bool operator==(const ScoreOptions&, const ScoreOptions&) = default;
};

// query [query_tokens, query_heads, qk_width], key [key_tokens, kv_heads, qk_width], value [key_tokens, kv_heads,
// v_width] give output [query_tokens, query_heads, v_width] and lse [query_tokens, query_heads]. A batch is a list of
// packed documents. query_heads is a multiple of kv_heads; nothing else need divide anything.
struct Problem {
  int64_t query_tokens = 0;
  int64_t key_tokens = 0;
  int query_heads = 1;
  int kv_heads = 1;
  int qk_width = 0;
  int v_width = 0;
  DType dtype = DType::kBFloat16;
  Mask mask;
  ScoreOptions score;

  int group() const { return query_heads / kv_heads; }
  float EffectiveScale() const;
  double Flops() const;  // 2 * area * heads * (qk_width + v_width)
  std::string ToString() const;
  friend bool operator==(const Problem&, const Problem&) = default;
};

// InvalidArgument naming the field, its value and what is allowed.
Status Validate(const Problem& problem);

}  // namespace tessera
