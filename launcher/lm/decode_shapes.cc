#include "launcher/lm/decode_shapes.h"

#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace tessera::launcher {
namespace {

MlaShape Mla(int hidden, int heads, int query_rank, int latent, int nope, int rope, int value) {
  MlaShape shape;
  shape.hidden = hidden;
  shape.heads = heads;
  shape.query_rank = query_rank;
  shape.latent = latent;
  shape.nope = nope;
  shape.rope = rope;
  shape.value = value;
  return shape;
}

// From the models' config.json files.
const std::map<std::string, std::variant<MlaShape, GqaShape>>& Known() {
  static const std::map<std::string, std::variant<MlaShape, GqaShape>> known{
      {"deepseek-v3", Mla(7168, 128, 1536, 512, 128, 64, 128)},
      {"kimi-k2", Mla(7168, 64, 1536, 512, 128, 64, 128)},
      {"deepseek-v2-lite", Mla(2048, 16, 0, 512, 128, 64, 128)},
      {"llama-3-8b", GqaShape{32, 8, 128, 4096}},
      {"llama-3-70b", GqaShape{64, 8, 128, 8192}}};
  return known;
}

// Exactly `count` integers after `prefix`, or nothing.
std::vector<int> Numbers(const std::string& text, const std::string& prefix, size_t count) {
  if (!text.starts_with(prefix)) return {};
  std::vector<int> numbers;
  for (const auto& word : absl::StrSplit(text.substr(prefix.size()), ',')) {
    int number = 0;
    if (!absl::SimpleAtoi(word, &number) || number < 0) return {};
    numbers.push_back(number);
  }
  return numbers.size() == count ? numbers : std::vector<int>();
}

}  // namespace

DecodeProblem LayerProblem(const MlaShape& shape) {
  DecodeProblem problem;
  problem.hidden = shape.hidden;
  problem.heads = shape.heads;
  problem.query_rank = shape.query_rank;
  problem.latent = shape.latent;
  problem.nope = shape.nope;
  problem.rope = shape.rope;
  problem.value = shape.value;
  return problem;
}

DecodeProblem LayerProblem(const DecodeShape& shape) {
  if (shape.is_mla()) return LayerProblem(shape.mla());
  DecodeProblem problem;
  problem.hidden = shape.gqa().hidden;
  problem.heads = shape.gqa().heads;
  problem.kv_heads = shape.gqa().kv_heads;
  problem.nope = problem.value = shape.gqa().width;
  return problem;
}

StatusOr<DecodeShape> ParseDecodeShape(const std::string& text) {
  if (const auto it = Known().find(text); it != Known().end()) return DecodeShape{text, it->second};
  if (const auto n = Numbers(text, "mla:", 7); !n.empty()) {
    const MlaShape shape = Mla(n[0], n[1], n[2], n[3], n[4], n[5], n[6]);
    TESSERA_RETURN_IF_ERROR(Validate(shape));
    return DecodeShape{text, shape};
  }
  auto n = Numbers(text, "gqa:", 3);
  if (n.empty()) n = Numbers(text, "gqa:", 4);
  if (!n.empty()) {
    if (n[0] < 1 || n[1] < 1 || n[0] % n[1] != 0 || n[2] < 1) {
      return absl::InvalidArgumentError("--model " + text + ": heads must be a multiple of kv_heads, width at least 1");
    }
    return DecodeShape{text, GqaShape{n[0], n[1], n[2], n.size() == 4 ? n[3] : 0}};
  }
  return absl::InvalidArgumentError("--model " + text + ": allowed are " + DecodeShapeHelp());
}

std::string DecodeShapeHelp() {
  std::string names;
  for (const auto& [name, shape] : Known()) names += name + ", ";
  return names + "mla:D,h,q_rank,C,dn,dr,dv (q_rank 0 = none) and gqa:h,kv_heads,width[,D]";
}

}  // namespace tessera::launcher
