// Token geometry shared by plans and kernels. All positions are *global* token coordinates unless a name says "row".
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace tessera {

// A position in the whole sequence, and a row of one rank's shard. Distinct types so that one cannot pass for the other.
enum class GlobalToken : int64_t {};
enum class LocalToken : int64_t {};

// Half-open range of tokens or rows [begin, end).
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  constexpr int64_t size() const { return end - begin; }
  constexpr bool empty() const { return end <= begin; }
  friend constexpr bool operator==(const Range&, const Range&) = default;
};
constexpr Range Intersect(Range a, Range b) {
  return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

// Half-open range of heads.
struct HeadRange {
  int begin = 0;
  int end = 0;
  constexpr int size() const { return end - begin; }
  constexpr bool empty() const { return end <= begin; }
  friend constexpr bool operator==(const HeadRange&, const HeadRange&) = default;
};

// An arithmetic progression of global tokens: row i of the segment is token begin + i * stride. stride >= 1.
// A contiguous or zigzag chunk has stride 1, a striped shard has stride P.
struct Segment {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t stride = 1;
  constexpr bool empty() const { return count <= 0; }
  constexpr int64_t token(int64_t row) const { return begin + row * stride; }
  constexpr int64_t last() const { return token(count - 1); }
  friend constexpr bool operator==(const Segment&, const Segment&) = default;
};

// The rows of `segment` whose tokens lie in `tokens`.
constexpr Range RowsWithin(const Segment& segment, Range tokens) {
  const auto ceil_div = [](int64_t a, int64_t b) { return a <= 0 ? int64_t{0} : (a + b - 1) / b; };
  const Range rows{ceil_div(tokens.begin - segment.begin, segment.stride),
                   std::min(segment.count, ceil_div(tokens.end - segment.begin, segment.stride))};
  return rows.empty() ? Range{} : rows;
}
constexpr Segment Rows(const Segment& segment, Range rows) {
  return {segment.token(rows.begin), rows.size(), segment.stride};
}

inline constexpr int64_t kUnboundedDiagonal = int64_t{1} << 60;

// The canonical form of every mask slice: query q in `queries` may attend key k in `keys` when
// min_offset <= k - q <= max_offset. Causal, inverse-causal, bi-causal slices and sliding windows are all bands, so a
// kernel needs one test only. Bands of one mask never share a (q, k) pair.
struct Band {
  Range queries;
  Range keys;
  int64_t min_offset = -kUnboundedDiagonal;
  int64_t max_offset = kUnboundedDiagonal;
  friend constexpr bool operator==(const Band&, const Band&) = default;

  constexpr bool Allows(int64_t q, int64_t k) const {
    return q >= queries.begin && q < queries.end && k >= keys.begin && k < keys.end && k - q >= min_offset &&
           k - q <= max_offset;
  }
  // Keys that query q attends in this band; may be empty.
  constexpr Range KeysOf(int64_t q) const {
    if (q < queries.begin || q >= queries.end) return {};
    return Intersect(keys, {q + min_offset, q + max_offset + 1});
  }
};

// One attend job between rows of a local query tensor and rows of a local key/value tensor.
struct Tile {
  int64_t query_row = 0;  // first row in the query tensor
  Segment queries;        // their global tokens
  int64_t key_row = 0;    // first row in the key and value tensors
  Segment keys;           // their global tokens
  friend constexpr bool operator==(const Tile&, const Tile&) = default;
};

}  // namespace tessera
