#include "kernels/decode.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/decode.h"
#include "kernels/decode_check.h"
#include "kernels/find_kernel.h"
#include "kernels/reference/decode.h"

namespace tessera {
namespace {

template <class... Parts>
Status Invalid(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("decode: ", parts...));
}

Status CheckViews(const DecodeArgs& args) {
  const CacheLayer& cache = args.cache;
  for (MemorySpace space : {args.query.space, args.output.space, args.lse.space}) {
    if (space != MemorySpace::kHost) return Invalid("every tensor must be in host memory");
  }
  if (args.query.dtype != cache.dtype) {
    return Invalid("query is ", std::string(Name(args.query.dtype)), ", the cache ", std::string(Name(cache.dtype)));
  }
  if (args.output.dtype != DType::kFloat32 || args.lse.dtype != DType::kFloat32) {
    return Invalid("output and LSE must be fp32");
  }
  if (cache.qk_width < 1 || cache.v_width < 1) return Invalid("cache widths must be at least 1");
  if (args.query.width != cache.qk_width) {
    return Invalid("query width ", args.query.width, " differs from the cache's key width ", cache.qk_width);
  }
  if (args.output.width != cache.v_width || args.lse.width != 1) {
    return Invalid("output must be as wide as the cache's values (", cache.v_width, ") and LSE must have width 1");
  }
  for (const TensorView& view : {args.output, args.lse}) {
    if (view.rows != args.query.rows || view.heads != args.query.heads) {
      return Invalid("output and LSE must agree with query in rows and heads");
    }
  }
  if (cache.kv_heads < 1 || cache.page_tokens < 1) return Invalid("kv_heads and page_tokens must be at least 1");
  return absl::OkStatus();
}

Status CheckHeads(const DecodeArgs& args) {
  if (args.group < 1 || args.first_query_head < 0 || args.first_kv_head < 0) {
    return Invalid("group must be positive and first heads not negative");
  }
  if (args.query.heads == 0) return absl::OkStatus();
  if (KeyHeadOf(args, 0) < 0 || KeyHeadOf(args, args.query.heads - 1) >= args.cache.kv_heads) {
    return Invalid("query heads ", args.first_query_head, " to ", args.first_query_head + args.query.heads - 1,
                   " in groups of ", args.group, " read key heads outside [", args.first_kv_head, ", ",
                   args.first_kv_head + args.cache.kv_heads, ")");
  }
  return absl::OkStatus();
}

Status CheckSequence(const DecodeArgs& args, size_t index) {
  const DecodeSequence& sequence = args.sequences[index];
  const auto rows = static_cast<int64_t>(sequence.visible.size());
  if (sequence.first_query_row < 0 || sequence.first_query_row > args.query.rows - rows) {
    return Invalid("sequence ", index, " has query rows [", sequence.first_query_row, ", ",
                   sequence.first_query_row + rows, ") of a tensor with ", args.query.rows);
  }
  const int64_t cached = static_cast<int64_t>(sequence.pages.size()) * args.cache.page_tokens;
  Range seen{cached, 0};
  for (const Range& range : sequence.visible) {
    if (range.empty()) continue;
    if (range.begin < 0 || range.end > cached) {
      return Invalid("sequence ", index, " sees cache rows [", range.begin, ", ", range.end, ") of ", cached);
    }
    seen = {std::min(seen.begin, range.begin), std::max(seen.end, range.end)};
  }
  if (seen.empty()) return absl::OkStatus();
  if (args.cache.key == nullptr || args.cache.value == nullptr) return Invalid("the cache has no memory");
  for (int64_t page = seen.begin / args.cache.page_tokens; page * args.cache.page_tokens < seen.end; ++page) {
    if (sequence.pages[page] < 0) return Invalid("sequence ", index, " has page ", sequence.pages[page]);
  }
  return absl::OkStatus();
}

// Two sequences with a query row in common would race for its output.
Status CheckRowsAreDistinct(const DecodeArgs& args) {
  std::vector<std::pair<int64_t, int64_t>> rows;
  for (const DecodeSequence& sequence : args.sequences) {
    if (!sequence.visible.empty()) rows.emplace_back(sequence.first_query_row, sequence.visible.size());
  }
  std::sort(rows.begin(), rows.end());
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i - 1].first + rows[i - 1].second > rows[i].first) {
      return Invalid("query row ", rows[i].first, " belongs to two sequences");
    }
  }
  return absl::OkStatus();
}

}  // namespace

Status CheckDecodeArgs(const DecodeArgs& args) {
  TESSERA_RETURN_IF_ERROR(CheckViews(args));
  TESSERA_RETURN_IF_ERROR(CheckHeads(args));
  for (size_t i = 0; i < args.sequences.size(); ++i) TESSERA_RETURN_IF_ERROR(CheckSequence(args, i));
  TESSERA_RETURN_IF_ERROR(CheckRowsAreDistinct(args));
  if (!std::isfinite(args.scale)) return Invalid("scale must be finite");
  if (args.threads < 1) return Invalid("threads must be at least 1");
  return absl::OkStatus();
}

std::span<const DecodeKernel* const> DecodeKernels() {
  static const std::vector<const DecodeKernel*> kernels = [] {
    std::vector<const DecodeKernel*> all = cpu::Decoders();
    all.push_back(reference::Decoder());
    return all;
  }();
  return kernels;
}

StatusOr<const DecodeKernel*> FindDecodeKernel(const DecodeTraits& traits, std::string_view name) {
  return FindKernel(DecodeKernels(), traits, name, "decode", "widths");
}

}  // namespace tessera
