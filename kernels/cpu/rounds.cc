#include "kernels/cpu/rounds.h"

#include <algorithm>
#include <bit>

#include "kernels/cpu/blocks.h"

namespace tessera::cpu {
namespace {

// Rows cut so that every tile is a run of whole pieces: pieces of two tiles are then equal or apart, however the tiles
// overlap.
class Cuts {
 public:
  void Add(int64_t begin, int64_t count) {
    ends_.push_back(begin);
    ends_.push_back(begin + count);
  }
  // Cuts further into equal pieces of at most `step` rows.
  void Refine(int64_t step) {
    std::sort(ends_.begin(), ends_.end());
    ends_.erase(std::unique(ends_.begin(), ends_.end()), ends_.end());
    std::vector<int64_t> refined;
    for (size_t i = 0; i + 1 < ends_.size(); ++i) {
      const int64_t size = ends_[i + 1] - ends_[i], pieces = (size + step - 1) / step;
      for (int64_t p = 0; p < pieces; ++p) refined.push_back(ends_[i] + size * p / pieces);
    }
    if (!ends_.empty()) refined.push_back(ends_.back());
    ends_ = std::move(refined);
  }
  // Numbers of the pieces of [begin, begin + count), which was added.
  Range PiecesOf(int64_t begin, int64_t count) const { return {NumberOf(begin), NumberOf(begin + count)}; }
  Range Rows(int64_t piece) const { return {ends_[piece], ends_[piece + 1]}; }
  size_t size() const { return ends_.size(); }

 private:
  int64_t NumberOf(int64_t row) const { return std::lower_bound(ends_.begin(), ends_.end(), row) - ends_.begin(); }
  std::vector<int64_t> ends_;
};

// The rounds in which a piece is taken, one bit each.
class TakenRounds {
 public:
  static size_t FirstFree(const TakenRounds& a, const TakenRounds& b) {
    size_t word = 0;
    while ((a.Word(word) | b.Word(word)) == ~uint64_t{0}) ++word;
    return word * 64 + static_cast<size_t>(std::countr_one(a.Word(word) | b.Word(word)));
  }
  void Take(size_t round) {
    if (round / 64 >= words_.size()) words_.resize(round / 64 + 1);
    words_[round / 64] |= uint64_t{1} << round % 64;
  }

 private:
  uint64_t Word(size_t i) const { return i < words_.size() ? words_[i] : 0; }
  std::vector<uint64_t> words_;
};

}  // namespace

std::vector<std::vector<Tile>> Rounds(std::span<const Tile> tiles, std::span<const Band> bands, int64_t rows,
                                      int64_t keys) {
  Cuts query_cuts, key_cuts;
  for (const Tile& tile : tiles) {
    if (tile.queries.empty() || tile.keys.empty()) continue;
    query_cuts.Add(tile.query_row, tile.queries.count);
    key_cuts.Add(tile.key_row, tile.keys.count);
  }
  query_cuts.Refine(rows);
  key_cuts.Refine(keys);
  std::vector<TakenRounds> query_taken(query_cuts.size()), key_taken(key_cuts.size());
  std::vector<std::vector<Tile>> rounds;
  for (const Tile& tile : tiles) {
    if (tile.queries.empty() || tile.keys.empty()) continue;
    const Range query_pieces = query_cuts.PiecesOf(tile.query_row, tile.queries.count);
    const Range key_pieces = key_cuts.PiecesOf(tile.key_row, tile.keys.count);
    for (int64_t q = query_pieces.begin; q < query_pieces.end; ++q) {
      const Range query_rows = query_cuts.Rows(q);
      const Segment queries =
          tessera::Rows(tile.queries, {query_rows.begin - tile.query_row, query_rows.end - tile.query_row});
      for (int64_t k = key_pieces.begin; k < key_pieces.end; ++k) {
        const Range key_rows = key_cuts.Rows(k);
        const Segment piece = tessera::Rows(tile.keys, {key_rows.begin - tile.key_row, key_rows.end - tile.key_row});
        // First fit over all pairs of pieces gives round q XOR k on a full grid. Pieces that no band meets take a round
        // too: under a causal mask every round is then half full, where first fit over the rest would leave round n - 1
        // a single piece.
        const size_t round = TakenRounds::FirstFree(query_taken[q], key_taken[k]);
        query_taken[q].Take(round);
        key_taken[k].Take(round);
        const auto meets = [&](const Band& band) { return !KeyRowsMet(band, queries, piece).empty(); };
        if (std::none_of(bands.begin(), bands.end(), meets)) continue;
        if (round >= rounds.size()) rounds.resize(round + 1);
        rounds[round].push_back({query_rows.begin, queries, key_rows.begin, piece});
      }
    }
  }
  return rounds;
}

}  // namespace tessera::cpu
