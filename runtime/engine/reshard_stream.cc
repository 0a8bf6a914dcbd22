#include "runtime/engine/reshard_stream.h"

#include <algorithm>

namespace tessera {
namespace {

// Calls visit(first local row, count) for the tokens in order, in runs of rows that follow each other.
template <typename Visit>
void ForEachRowRun(const CacheEnd& end, int index, int sequence, const IntervalSet& tokens, Visit visit) {
  for (const Range& range : tokens.ranges()) {
    if (end.layouts.empty()) {
      visit(end.sharding.LocalRows(index, range.begin), range.size());
      continue;
    }
    for (int64_t token = range.begin; token < range.end;) {
      int64_t first_row = 0;
      int64_t count = 0;
      for (const Segment& segment : end.layouts[sequence].segments(index)) {
        const Range rows = RowsWithin(segment, {token, range.end});
        if (!rows.empty() && segment.token(rows.begin) == token) {
          first_row += rows.begin;
          count = segment.stride == 1 ? rows.size() : 1;
          break;
        }
        first_row += segment.count;
      }
      if (count == 0) return;  // not held: Verify would have said so
      visit(first_row, count);
      token += count;
    }
  }
}

// Columns of one key or value head, in whole-row numbers, and the head.
struct Piece {
  bool value = false;
  int head = 0;
  Range columns;  // within the head
};

std::vector<Piece> PiecesOf(const IntervalSet& columns, const CacheRowShape& shape) {
  std::vector<Piece> pieces;
  for (const Range& range : columns.ranges()) {
    if (shape.latent) {
      pieces.push_back({false, 0, range});
      continue;
    }
    const int64_t keys = int64_t{shape.kv_heads} * shape.key_width;
    for (int64_t column = range.begin; column < range.end;) {
      const bool value = column >= keys;
      const int width = value ? shape.value_width : shape.key_width;
      const int64_t within = value ? column - keys : column;
      const int64_t first = within % width;
      const int64_t end = std::min(first + range.end - column, int64_t{width});
      pieces.push_back({value, static_cast<int>(within / width), {first, end}});
      column += end - first;
    }
  }
  return pieces;
}

}  // namespace

std::vector<RowRun> RunsOf(const ReshardMessage& message, const ReshardSpec& spec, const CacheEnd& end, int index) {
  const CacheRowShape& shape = spec.shape;
  const auto element = static_cast<int64_t>(SizeInBytes(shape.dtype));
  const IntervalSet held = HeldColumns(end, shape, index);
  const int first_head = end.layouts.empty() ? end.sharding.KvHeads(index, shape.kv_heads).begin : 0;
  std::vector<RowRun> runs;
  for (const ReshardPart& part : message.parts) {
    for (const Piece& piece : PiecesOf(part.columns, shape)) {
      RowRun run{part.sequence, piece.value, piece.head - first_head};
      // What a rank holds of a latent row is packed; heads are held whole.
      run.offset = (shape.latent ? held.CountBefore(piece.columns.begin) : piece.columns.begin) * element;
      run.bytes = piece.columns.size() * element;
      ForEachRowRun(end, index, part.sequence, part.tokens, [&](int64_t row, int64_t count) {
        run.row = row;
        run.count = count;
        runs.push_back(run);
      });
    }
  }
  return runs;
}

}  // namespace tessera
