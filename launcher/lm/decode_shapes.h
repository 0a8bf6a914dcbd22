// Attention layers that decoding is measured on, by name or by numbers.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "kernels/mla.h"
#include "runtime/base/status.h"

namespace tessera::launcher {

// Grouped-query attention: keys and values of width `width`, shared by heads / kv_heads query heads each.
struct GqaShape {
  int heads = 0;
  int kv_heads = 0;
  int width = 0;
};

struct DecodeShape {
  std::string name;
  std::variant<MlaShape, GqaShape> layer;
  bool is_mla() const { return std::holds_alternative<MlaShape>(layer); }
  const MlaShape& mla() const { return std::get<MlaShape>(layer); }
  const GqaShape& gqa() const { return std::get<GqaShape>(layer); }
  int heads() const { return is_mla() ? mla().heads : gqa().heads; }
};

// "deepseek-v3", "kimi-k2", "deepseek-v2-lite", "llama-3-8b", "llama-3-70b"; "mla:D,h,q_rank,C,dn,dr,dv" (q_rank 0 =
// none) or "gqa:h,kv_heads,width". InvalidArgument names the text and what is allowed.
StatusOr<DecodeShape> ParseDecodeShape(const std::string& text);

}  // namespace tessera::launcher
