// Attention layers that decoding is priced for and measured on, by name or by numbers.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "kernels/mla.h"
#include "partition/decode_price.h"
#include "runtime/base/status.h"

namespace tessera::launcher {

// Grouped-query attention: keys and values of width `width`, shared by heads / kv_heads query heads each.
// `hidden` is what projections around it would have; 0 = attention alone.
struct GqaShape {
  int heads = 0;
  int kv_heads = 0;
  int width = 0;
  int hidden = 0;
};

struct DecodeShape {
  std::string name;
  std::variant<MlaShape, GqaShape> layer;
  bool is_mla() const { return std::holds_alternative<MlaShape>(layer); }
  const MlaShape& mla() const { return std::get<MlaShape>(layer); }
  const GqaShape& gqa() const { return std::get<GqaShape>(layer); }
  int heads() const { return is_mla() ? mla().heads : gqa().heads; }
};

// The layer as the price model sees it; context, batch and dtype are for the caller to set.
DecodeProblem LayerProblem(const MlaShape& shape);
DecodeProblem LayerProblem(const DecodeShape& shape);

// A known model's name, "mla:D,h,q_rank,C,dn,dr,dv" (q_rank 0 = none), "gqa:h,kv_heads,width" or
// "gqa:h,kv_heads,width,D". InvalidArgument names the text and what is allowed.
StatusOr<DecodeShape> ParseDecodeShape(const std::string& text);
// What ParseDecodeShape takes, for the help of --model.
std::string DecodeShapeHelp();

}  // namespace tessera::launcher
