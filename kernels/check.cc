#include "kernels/check.h"

#include <initializer_list>

namespace tessera {
namespace {

Status Invalid(const auto&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("attend: ", parts...));
}

Status CheckViews(const AttendArgs& args) {
  for (MemorySpace space : {args.query.space, args.key.space, args.value.space, args.output.space, args.lse.space}) {
    if (space != MemorySpace::kHost) return Invalid("every tensor must be in host memory");
  }
  if (args.key.dtype != args.query.dtype || args.value.dtype != args.query.dtype) {
    return Invalid("query, key and value must share one dtype");
  }
  if (args.output.dtype != DType::kFloat32 || args.lse.dtype != DType::kFloat32) {
    return Invalid("output and LSE must be fp32");
  }
  if (args.query.width < 1 || args.value.width < 1) return Invalid("head widths must be at least 1");
  if (args.key.width != args.query.width) {
    return Invalid("key width ", args.key.width, " differs from query width ", args.query.width);
  }
  if (args.output.width != args.value.width || args.lse.width != 1) {
    return Invalid("output must be as wide as value and LSE must have width 1");
  }
  if (args.value.rows != args.key.rows || args.value.heads != args.key.heads) {
    return Invalid("key and value must agree in rows and heads");
  }
  if (args.output.rows != args.query.rows || args.lse.rows != args.query.rows ||
      args.output.heads != args.query.heads || args.lse.heads != args.query.heads) {
    return Invalid("output and LSE must agree with query in rows and heads");
  }
  return absl::OkStatus();
}

Status CheckHeads(const AttendArgs& args) {
  if (args.group < 1 || args.first_query_head < 0 || args.first_kv_head < 0) {
    return Invalid("group must be positive and first heads not negative");
  }
  if (args.query.heads == 0) return absl::OkStatus();
  if (KeyHeadOf(args, 0) < 0 || KeyHeadOf(args, args.query.heads - 1) >= args.key.heads) {
    return Invalid("query heads ", args.first_query_head, " to ", args.first_query_head + args.query.heads - 1,
                   " in groups of ", args.group, " read key heads outside [", args.first_kv_head, ", ",
                   args.first_kv_head + args.key.heads, ")");
  }
  return absl::OkStatus();
}

Status CheckRows(std::string_view what, int64_t first_row, const Segment& segment, int64_t rows) {
  if (segment.count < 0 || segment.stride < 1) {
    return Invalid("a tile's ", std::string(what), " segment needs count >= 0 and stride >= 1");
  }
  if (first_row < 0 || first_row > rows - segment.count) {
    return Invalid("a tile's ", std::string(what), " rows [", first_row, ", ", first_row + segment.count,
                   ") are outside the tensor's ", rows);
  }
  return absl::OkStatus();
}

}  // namespace

Status CheckAttendArgs(const AttendArgs& args) {
  TESSERA_RETURN_IF_ERROR(CheckViews(args));
  TESSERA_RETURN_IF_ERROR(CheckHeads(args));
  for (const Tile& tile : args.tiles) {
    TESSERA_RETURN_IF_ERROR(CheckRows("query", tile.query_row, tile.queries, args.query.rows));
    TESSERA_RETURN_IF_ERROR(CheckRows("key", tile.key_row, tile.keys, args.key.rows));
  }
  if (!args.score.alibi_slopes.empty() && args.score.alibi_slopes.size() != static_cast<size_t>(args.query.heads)) {
    return Invalid("there are ", args.score.alibi_slopes.size(), " ALiBi slopes for ", args.query.heads,
                   " query heads");
  }
  if (args.threads < 1) return Invalid("threads must be at least 1");
  return absl::OkStatus();
}

}  // namespace tessera
