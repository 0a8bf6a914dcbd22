#include "kernels/check.h"

#include <initializer_list>
#include <string>

namespace tessera {
namespace {

std::string_view NameOf(const AttendArgs&) {
  return "attend";
}
std::string_view NameOf(const AttendBackwardArgs&) {
  return "attend backward";
}

Status Invalid(const auto& args, const auto&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(NameOf(args)), ": ", parts...));
}

Status CheckHost(const auto& args, std::initializer_list<MemorySpace> spaces) {
  for (MemorySpace space : spaces) {
    if (space != MemorySpace::kHost) return Invalid(args, "every tensor must be in host memory");
  }
  return absl::OkStatus();
}

bool SameRowsAndHeads(const ConstTensorView& a, const ConstTensorView& b) {
  return a.rows == b.rows && a.heads == b.heads;
}

Status CheckViews(const AttendArgs& args) {
  TESSERA_RETURN_IF_ERROR(
      CheckHost(args, {args.query.space, args.key.space, args.value.space, args.output.space, args.lse.space}));
  if (args.key.dtype != args.query.dtype || args.value.dtype != args.query.dtype) {
    return Invalid(args, "query, key and value must share one dtype");
  }
  const DType accumulator = AccumulatorType(args.query.dtype);
  if (args.output.dtype != accumulator || args.lse.dtype != accumulator) {
    return Invalid(args, "output and LSE must be ", std::string(Name(accumulator)));
  }
  if (args.query.width < 1 || args.value.width < 1) return Invalid(args, "head widths must be at least 1");
  if (args.key.width != args.query.width) {
    return Invalid(args, "key width ", args.key.width, " differs from query width ", args.query.width);
  }
  if (args.output.width != args.value.width || args.lse.width != 1) {
    return Invalid(args, "output must be as wide as value and LSE must have width 1");
  }
  if (!SameRowsAndHeads(args.value, args.key)) return Invalid(args, "key and value must agree in rows and heads");
  if (!SameRowsAndHeads(args.output, args.query) || !SameRowsAndHeads(args.lse, args.query)) {
    return Invalid(args, "output and LSE must agree with query in rows and heads");
  }
  return absl::OkStatus();
}

Status CheckViews(const AttendBackwardArgs& args) {
  TESSERA_RETURN_IF_ERROR(CheckHost(
      args, {args.query.space, args.key.space, args.value.space, args.output_gradient.space, args.lse.space,
             args.delta.space, args.query_gradient.space, args.key_gradient.space, args.value_gradient.space}));
  if (args.key.dtype != args.query.dtype || args.value.dtype != args.query.dtype ||
      args.output_gradient.dtype != args.query.dtype) {
    return Invalid(args, "query, key, value and output gradient must share one dtype");
  }
  for (DType dtype : {args.lse.dtype, args.delta.dtype, args.query_gradient.dtype, args.key_gradient.dtype,
                      args.value_gradient.dtype}) {
    if (const DType accumulator = AccumulatorType(args.query.dtype); dtype != accumulator) {
      return Invalid(args, "LSE, delta and the gradients added to must be ", std::string(Name(accumulator)));
    }
  }
  if (args.query.width < 1 || args.value.width < 1) return Invalid(args, "head widths must be at least 1");
  if (args.key.width != args.query.width) {
    return Invalid(args, "key width ", args.key.width, " differs from query width ", args.query.width);
  }
  if (args.output_gradient.width != args.value.width || args.lse.width != 1 || args.delta.width != 1) {
    return Invalid(args, "output gradient must be as wide as value, and LSE and delta must have width 1");
  }
  if (args.query_gradient.width != args.query.width || args.key_gradient.width != args.key.width ||
      args.value_gradient.width != args.value.width) {
    return Invalid(args, "gradients must be as wide as query, key and value");
  }
  if (!SameRowsAndHeads(args.value, args.key) || !SameRowsAndHeads(args.key_gradient, args.key) ||
      !SameRowsAndHeads(args.value_gradient, args.key)) {
    return Invalid(args, "key, value and their gradients must agree in rows and heads");
  }
  for (const ConstTensorView& view :
       {args.output_gradient, args.lse, args.delta, ConstTensorView(args.query_gradient)}) {
    if (!SameRowsAndHeads(view, args.query)) {
      return Invalid(args, "output gradient, LSE, delta and query gradient must agree with query in rows and heads");
    }
  }
  return absl::OkStatus();
}

Status CheckHeads(const auto& args) {
  if (args.group < 1 || args.first_query_head < 0 || args.first_kv_head < 0) {
    return Invalid(args, "group must be positive and first heads not negative");
  }
  if (args.query.heads == 0) return absl::OkStatus();
  if (KeyHeadOf(args, 0) < 0 || KeyHeadOf(args, args.query.heads - 1) >= args.key.heads) {
    return Invalid(args, "query heads ", args.first_query_head, " to ", args.first_query_head + args.query.heads - 1,
                   " in groups of ", args.group, " read key heads outside [", args.first_kv_head, ", ",
                   args.first_kv_head + args.key.heads, ")");
  }
  return absl::OkStatus();
}

Status CheckRows(const auto& args, std::string_view what, int64_t first_row, const Segment& segment, int64_t rows) {
  if (segment.count < 0 || segment.stride < 1) {
    return Invalid(args, "a tile's ", std::string(what), " segment needs count >= 0 and stride >= 1");
  }
  if (first_row < 0 || first_row > rows - segment.count) {
    return Invalid(args, "a tile's ", std::string(what), " rows [", first_row, ", ", first_row + segment.count,
                   ") are outside the tensor's ", rows);
  }
  return absl::OkStatus();
}

Status Check(const auto& args) {
  TESSERA_RETURN_IF_ERROR(CheckViews(args));
  TESSERA_RETURN_IF_ERROR(CheckHeads(args));
  for (const Tile& tile : args.tiles) {
    TESSERA_RETURN_IF_ERROR(CheckRows(args, "query", tile.query_row, tile.queries, args.query.rows));
    TESSERA_RETURN_IF_ERROR(CheckRows(args, "key", tile.key_row, tile.keys, args.key.rows));
  }
  if (!args.score.alibi_slopes.empty() && args.score.alibi_slopes.size() != static_cast<size_t>(args.query.heads)) {
    return Invalid(args, "there are ", args.score.alibi_slopes.size(), " ALiBi slopes for ", args.query.heads,
                   " query heads");
  }
  if (args.threads < 1) return Invalid(args, "threads must be at least 1");
  return absl::OkStatus();
}

}  // namespace

Status CheckAttendArgs(const AttendArgs& args) {
  return Check(args);
}
Status CheckAttendBackwardArgs(const AttendBackwardArgs& args) {
  return Check(args);
}

}  // namespace tessera
