#include <algorithm>
#include <cmath>
#include <sstream>

#include "launcher/bench_kernel.h"
#include "launcher/problem_flags.h"

namespace tessera::launcher {
namespace {

constexpr int64_t kMostKernelTokens = int64_t{1} << 24;

constexpr char kAllowed[] =
    "allowed: [OPERATION:]HEADS/KV_HEADS/QK_WIDTH/V_WIDTH[/latent][:TOKENS[:MASK]], OPERATION one of decode, forward "
    "and "
    "backward; /latent (values are the first columns of keys) and no MASK for decode";

// Takes what stands before the next ':' off the front of `text`.
std::string TakeField(std::string* text) {
  const size_t colon = text->find(':');
  const std::string field = text->substr(0, colon);
  text->erase(0, colon == std::string::npos ? colon : colon + 1);
  return field;
}

bool ParseShape(const std::string& text, KernelProblem* problem) {
  std::istringstream in(text);
  char slash[3] = {};
  std::string rest;
  in >> problem->heads >> slash[0] >> problem->kv_heads >> slash[1] >> problem->qk_width >> slash[2] >>
      problem->v_width;
  if (in.fail() || std::count(slash, slash + 3, '/') != 3) return false;
  in >> rest;
  problem->latent = rest == "/latent";
  return (rest.empty() || problem->latent) && problem->kv_heads >= 1 && problem->heads >= 1 &&
         problem->heads % problem->kv_heads == 0 && problem->qk_width >= 1 && problem->v_width >= 1 &&
         !(problem->latent && problem->v_width > problem->qk_width);
}

}  // namespace

std::string KernelProblem::ToString() const {
  return absl::StrCat(operation, ":", heads, "/", kv_heads, "/", qk_width, "/", v_width, latent ? "/latent" : "", ":",
                      tokens, mask.empty() ? "" : ":" + mask);
}

StatusOr<KernelProblem> ParseKernelProblem(const std::string& text, DType dtype, int64_t tokens, int page_tokens) {
  const auto refuse = [&] { return absl::InvalidArgumentError(absl::StrCat("--problem ", text, "; ", kAllowed)); };
  KernelProblem problem;
  problem.dtype = dtype;
  problem.tokens = tokens;
  problem.page_tokens = page_tokens;
  std::string rest = text;
  for (const char* operation : {"decode", "forward", "backward"}) {
    if (rest.rfind(std::string(operation) + ":", 0) == 0) problem.operation = TakeField(&rest);
  }
  if (!ParseShape(TakeField(&rest), &problem)) return refuse();
  if (!rest.empty()) {
    std::istringstream in(TakeField(&rest));
    in >> problem.tokens;
    if (in.fail() || !in.eof() || problem.tokens < 1 || problem.tokens > kMostKernelTokens) return refuse();
  }
  const bool decode = problem.operation == "decode";
  if (decode ? !rest.empty() : problem.latent) return refuse();
  if (decode) return problem;
  problem.mask = rest.empty() ? "causal" : rest;
  TESSERA_RETURN_IF_ERROR(ParseMask(problem.mask, problem.tokens, problem.tokens).status());
  return problem;
}

StatusOr<HostBuffer> RandomElements(DType dtype, size_t count, uint64_t seed) {
  TESSERA_ASSIGN_OR_RETURN(HostBuffer elements,
                           HostBuffer::Allocate(static_cast<int64_t>(count * SizeInBytes(dtype)), "a random tensor"));
  uint64_t state = seed;
  for (size_t i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    StoreFromFloat(elements.data(), dtype, static_cast<int64_t>(i),
                   static_cast<float>(static_cast<int64_t>(state >> 40)) * 0x1p-22f - 2.0f);
  }
  return elements;
}

double RelativeDifference(const std::vector<float>& values, const std::vector<float>& exact) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (double{values[i]} - exact[i]) * (double{values[i]} - exact[i]);
    size += double{exact[i]} * exact[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace tessera::launcher
