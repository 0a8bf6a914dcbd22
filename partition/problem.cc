#include "partition/problem.h"

#include <cmath>

namespace tessera {

float Problem::EffectiveScale() const {
  return score.scale != 0.0f ? score.scale : 1.0f / std::sqrt(static_cast<float>(qk_width));
}

double Problem::Flops() const {
  return 2.0 * mask.Area() * query_heads * (qk_width + v_width);
}

std::string Problem::ToString() const {
  return absl::StrFormat("q%dx%d:k%dx%d:d%d:v%d:%s:bands%d", query_tokens, query_heads, key_tokens, kv_heads, qk_width,
                         v_width, std::string(Name(dtype)), mask.bands().size());
}

Status Validate(const Problem& problem) {
  const auto reject = [](const char* field, auto value, const char* allowed) {
    return absl::InvalidArgumentError(absl::StrCat("problem: ", field, " is ", value, "; it must be ", allowed));
  };
  constexpr int kMaxHeads = 1 << 16;
  // Beyond this no memory holds a tensor, and below it no count of bytes or pairs overflows.
  constexpr int64_t kMaxTokens = int64_t{1} << 32;
  for (const auto& [field, tokens] :
       {std::pair("query_tokens", problem.query_tokens), {"key_tokens", problem.key_tokens}}) {
    if (tokens < 0 || tokens > kMaxTokens) return reject(field, tokens, "from 0 to 2^32");
  }
  if (problem.query_heads < 1 || problem.query_heads > kMaxHeads) {
    return reject("query_heads", problem.query_heads, "from 1 to 65536");
  }
  if (problem.kv_heads < 1) return reject("kv_heads", problem.kv_heads, "at least 1");
  if (problem.query_heads % problem.kv_heads != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("problem: query_heads is %d and kv_heads %d; query_heads must be a "
                        "multiple of kv_heads",
                        problem.query_heads, problem.kv_heads));
  }
  if (problem.qk_width < 1 || problem.qk_width > 256) return reject("qk_width", problem.qk_width, "from 1 to 256");
  if (problem.v_width < 1 || problem.v_width > 256) return reject("v_width", problem.v_width, "from 1 to 256");
  if (!std::isfinite(problem.score.scale)) return reject("score.scale", problem.score.scale, "finite");
  if (!std::isfinite(problem.score.soft_cap) || problem.score.soft_cap < 0) {
    return reject("score.soft_cap", problem.score.soft_cap, "finite and at least 0 (0 turns it off)");
  }
  for (const Band& band : problem.mask.bands()) {
    if (band.queries.end > problem.query_tokens || band.keys.end > problem.key_tokens) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "problem: the mask covers queries to %d and keys to %d; the problem has %d query and %d key tokens",
          band.queries.end, band.keys.end, problem.query_tokens, problem.key_tokens));
    }
  }
  return absl::OkStatus();
}

}  // namespace tessera
