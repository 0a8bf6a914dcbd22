// Finds slices and a window whose mask has given bands. Masks are made from slices only, so that their invariants have
// one guardian; a document stores bands, which are what matters to a plan.
#include <algorithm>
#include <optional>
#include <set>

#include "partition/plan_json.h"

namespace tessera::plan_json {
namespace {

// Distances a window of the mask may have, guessed from where bands are cut. Masks have few; hostile input may not.
constexpr size_t kMostGuesses = 16;
std::set<int64_t> Guesses(std::span<const Band> bands, bool left) {
  std::set<int64_t> guesses{-1};
  for (const Band& band : bands) {
    const int64_t offset = left ? band.min_offset : band.max_offset;
    if (offset <= -kUnboundedDiagonal || offset >= kUnboundedDiagonal) continue;
    const int64_t bottom_right = band.keys.end - band.queries.end;
    const int64_t distance = left ? bottom_right - offset : offset - bottom_right;
    if (distance >= 0 && guesses.size() < kMostGuesses) guesses.insert(distance);
  }
  return guesses;
}

std::optional<MaskSlice> SliceOf(int64_t query_tokens, int64_t key_tokens, const Band& band, Window window) {
  for (const SliceType type : {SliceType::kFull, SliceType::kCausal, SliceType::kInverseCausal, SliceType::kBiCausal}) {
    const MaskSlice slice{band.queries, band.keys, type};
    const auto mask = Mask::FromSlices(query_tokens, key_tokens, {&slice, 1}, window);
    if (mask.ok() && mask->bands().size() == 1 && mask->bands().front() == band) return slice;
  }
  return std::nullopt;
}

}  // namespace

StatusOr<Mask> MaskFromBands(int64_t query_tokens, int64_t key_tokens, std::span<const Band> bands) {
  for (const int64_t left : Guesses(bands, true)) {
    for (const int64_t right : Guesses(bands, false)) {
      std::vector<MaskSlice> slices;
      for (const Band& band : bands) {
        const std::optional<MaskSlice> slice = SliceOf(query_tokens, key_tokens, band, {left, right});
        if (!slice.has_value()) break;
        slices.push_back(*slice);
      }
      if (slices.size() == bands.size()) return Mask::FromSlices(query_tokens, key_tokens, slices, {left, right});
    }
  }
  return absl::InvalidArgumentError("the bands are those of no list of slices");
}

}  // namespace tessera::plan_json
