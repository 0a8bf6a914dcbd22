// Which (query, key) pairs are computed: a list of slices in global token coordinates.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/geometry.h"
#include "runtime/base/status.h"

namespace tessera {

// In a slice [q0,q1) x [k0,k1): causal keeps k - k1 <= q - q1 (aligned bottom right), inverse-causal keeps
// k - k0 >= q - q0 (aligned top left), bi-causal keeps both.
enum class SliceType : uint8_t { kFull, kCausal, kInverseCausal, kBiCausal };

struct MaskSlice {
  Range queries;
  Range keys;
  SliceType type = SliceType::kFull;
};

// A sliding window: query q attends keys in [q + offset - left, q + offset + right], where offset aligns the last query
// with the last key of the slice. Negative means unbounded on that side.
struct Window {
  int64_t left = -1;
  int64_t right = -1;
};

// A validated mask. Immutable; comparable; the slices never cover a (query, key) pair twice.
class Mask {
 public:
  Mask() = default;  // nothing is attended

  // InvalidArgument, naming the slice, when a range is negative, reversed or outside the lengths, or two slices
  // overlap.
  static StatusOr<Mask> FromSlices(int64_t query_tokens, int64_t key_tokens, std::span<const MaskSlice> slices,
                                   Window window = {});
  static StatusOr<Mask> Full(int64_t query_tokens, int64_t key_tokens);
  static StatusOr<Mask> Causal(int64_t query_tokens, int64_t key_tokens, Window window = {});
  // Documents packed back to back: document i is [boundaries[i], boundaries[i+1]); tokens attend within their document.
  // boundaries start at 0, never decrease and end at the length; zero-length documents are allowed.
  static StatusOr<Mask> Documents(int64_t tokens, std::span<const int64_t> boundaries, SliceType type,
                                  Window window = {});

  // Sorted by first query, then first key.
  std::span<const Band> bands() const { return bands_; }
  // Number of attended (query, key) pairs.
  double Area() const;
  // Attended pairs with queries in `queries` and keys in `keys`.
  double Area(const Segment& queries, const Segment& keys) const;
  friend bool operator==(const Mask&, const Mask&) = default;

 private:
  std::vector<Band> bands_;
};

// Attended pairs of one band restricted to two segments; exact for any strides.
double BandArea(const Band& band, const Segment& queries, const Segment& keys);

}  // namespace tessera
