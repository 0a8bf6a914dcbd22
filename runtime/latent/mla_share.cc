#include "runtime/latent/mla_share.h"

#include <cstring>

namespace tessera {
namespace {

// Consecutive rows of a matrix need no copy.
MatrixView RowsOf(const MatrixView& matrix, Range rows) {
  const auto offset = rows.begin * matrix.columns * static_cast<int64_t>(SizeInBytes(matrix.dtype));
  return {static_cast<const std::byte*>(matrix.data) + offset, matrix.dtype, rows.size(), matrix.columns};
}

Range Times(HeadRange heads, int64_t width) {
  return {heads.begin * width, heads.end * width};
}

std::vector<float> ToFloats(const MatrixView& vector) {
  std::vector<float> values(vector.rows * vector.columns);
  for (size_t i = 0; i < values.size(); ++i) values[i] = LoadAsFloat(vector.data, vector.dtype, i);
  return values;
}

// A copy of part of a matrix.
MatrixView Block(const MatrixView& from, Range rows, Range columns, ShareWeights& owner) {
  const auto size = static_cast<int64_t>(SizeInBytes(from.dtype));
  auto& bytes = owner.copies.emplace_back(rows.size() * columns.size() * size);
  for (int64_t r = 0; r < rows.size(); ++r) {
    const auto* source =
        static_cast<const std::byte*>(from.data) + ((rows.begin + r) * from.columns + columns.begin) * size;
    std::memcpy(bytes.data() + r * columns.size() * size, source, columns.size() * size);
  }
  return {bytes.data(), from.dtype, rows.size(), columns.size()};
}

}  // namespace

StatusOr<ShareWeights> SelectWeights(const MlaShape& shape, const MlaWeights& weights, const MlaShare& share,
                                     MlaForm form) {
  TESSERA_RETURN_IF_ERROR(Validate(shape));
  TESSERA_RETURN_IF_ERROR(Validate(shape, weights));
  const bool sliced = share.latent_columns != Range{0, shape.latent};
  if (sliced && form == MlaForm::kExpanded) {
    return absl::InvalidArgumentError(absl::StrFormat("latent columns [%d, %d): the expanded form needs all %d of them",
                                                      share.latent_columns.begin, share.latent_columns.end,
                                                      shape.latent));
  }
  ShareWeights selected;
  selected.kv_down = {weights.kv_down};
  selected.kv_norm = ToFloats(weights.kv_norm);
  if (!share.query_heads.empty()) {
    const Range rows = Times(share.query_heads, shape.qk_width());
    if (shape.query_rank > 0) {
      selected.query_down = {weights.query_down};
      selected.query_up = {RowsOf(weights.query_up, rows)};
      selected.query_norm = ToFloats(weights.query_norm);
    } else {
      selected.query = {RowsOf(weights.query, rows)};
    }
  }
  if (!share.output_heads.empty()) {
    selected.output = {Block(weights.output, {0, shape.hidden}, Times(share.output_heads, shape.value), selected)};
  }
  if (form == MlaForm::kExpanded) {
    selected.kv_up = {weights.kv_up};
    return selected;
  }
  // Head j of kv_up: nope key rows, then value rows; both restricted to the share's columns.
  const auto per_head = [&](HeadRange heads, int64_t first, int64_t count) {
    std::vector<MatrixView> blocks;
    for (int head = heads.begin; head < heads.end; ++head) {
      const int64_t row = head * int64_t{shape.nope + shape.value} + first;
      blocks.push_back(Block(weights.kv_up, {row, row + count}, share.latent_columns, selected));
    }
    return blocks;
  };
  selected.absorb = per_head(share.absorbed_heads, 0, shape.nope);
  selected.value_up = per_head(share.value_heads, shape.nope, shape.value);
  return selected;
}

}  // namespace tessera
