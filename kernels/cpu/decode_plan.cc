#include "kernels/cpu/decode_plan.h"

#include <algorithm>
#include <span>

#include "kernels/cpu/decode.h"
#include "kernels/decode_check.h"

namespace tessera::cpu {
namespace {

// Pairs that share one pass over the keys, of all heads of a task together: 128 query rows of width 576 and outputs of
// width 512 take 560 KiB.
constexpr int kMostPairs = 128;

// Partial results held at a time.
constexpr size_t kWaveBytes = size_t{64} << 20;

int64_t RoundUp(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

HeadRange QueryHeadsOf(const DecodeArgs& args, int kv_head) {
  const int64_t begin = int64_t{args.first_kv_head + kv_head} * args.group - args.first_query_head;
  return {static_cast<int>(std::clamp<int64_t>(begin, 0, args.query.heads)),
          static_cast<int>(std::clamp<int64_t>(begin + args.group, 0, args.query.heads))};
}

// Writing and merging a chunk's partial results must cost little beside its products: the former grows with pairs * v
// width, so the fewest keys do too. About 32 tasks per sequence keep that many threads busy.
int64_t ChunkKeys(const DecodeArgs& args, int pairs, int64_t keys, int64_t tasks_abreast) {
  constexpr int64_t kTasks = 32;
  const int64_t fewest =
      std::clamp<int64_t>(RoundUp(int64_t{pairs} * args.cache.v_width / 32, kDecodeKeys), 4 * kDecodeKeys, 2048);
  return std::max(fewest, RoundUp(keys * tasks_abreast / kTasks, kDecodeKeys));
}

void AppendPairs(const DecodeArgs& args, const DecodeSequence& sequence, std::vector<DecodePairs>* all) {
  const size_t before = all->size();
  const auto rows = static_cast<int64_t>(sequence.visible.size());
  for (int kv_head = 0; kv_head < args.cache.kv_heads; ++kv_head) {
    const HeadRange heads = QueryHeadsOf(args, kv_head);
    for (int head = heads.begin; head < heads.end; head += kMostPairs) {
      const HeadRange some{head, std::min(heads.end, head + kMostPairs)};
      const int64_t step = std::max(1, kMostPairs / some.size());
      for (int64_t row = 0; row < rows; row += step) {
        all->push_back({&sequence, kv_head, {row, std::min(rows, row + step)}, some, {}, 1, 0});
      }
    }
  }
  for (size_t i = before; i < all->size(); ++i) {
    DecodePairs& pairs = (*all)[i];
    bool any = false;
    for (int64_t row = pairs.rows.begin; row < pairs.rows.end; ++row) {
      const Range& visible = sequence.visible[row];
      if (visible.empty()) continue;
      pairs.keys =
          any ? Range{std::min(pairs.keys.begin, visible.begin), std::max(pairs.keys.end, visible.end)} : visible;
      any = true;
    }
  }
  // Neighbours that see the same keys with as many pairs each share tasks.
  size_t tasks_abreast = 0;
  for (size_t i = before; i < all->size(); i += (*all)[i].task_chunks, ++tasks_abreast) {
    DecodePairs& first = (*all)[i];
    const auto fits = [&](size_t other) {
      const DecodePairs& pairs = (*all)[other];
      return pairs.rows == first.rows && pairs.heads.size() == first.heads.size() && pairs.keys == first.keys &&
             static_cast<int>(other - i + 1) * first.pairs() <= kMostPairs;
    };
    size_t end = i + 1;
    while (end < all->size() && fits(end)) ++end;
    for (size_t member = i; member < end; ++member) (*all)[member].task_chunks = end - i;
  }
  for (size_t i = before; i < all->size(); ++i) {
    DecodePairs& pairs = (*all)[i];
    pairs.chunk_keys = ChunkKeys(args, pairs.pairs(), pairs.keys.size(), static_cast<int64_t>(tasks_abreast));
  }
}

}  // namespace

std::vector<DecodeWave> PlanDecode(const DecodeArgs& args) {
  std::vector<DecodePairs> all;
  for (const DecodeSequence& sequence : args.sequences) AppendPairs(args, sequence, &all);
  const size_t most = std::max<size_t>(1, kWaveBytes / (PaddedWidth(args.cache.v_width) * sizeof(float)));
  std::vector<DecodeWave> waves;
  for (size_t i = 0; i < all.size(); i += all[i].task_chunks) {
    const std::span<DecodePairs> together = std::span(all).subspan(i, all[i].task_chunks);
    const DecodePairs& first = together.front();
    const size_t partials = first.chunks() * static_cast<size_t>(first.pairs()) * together.size();
    if (waves.empty() || waves.back().partials + partials > most) waves.emplace_back();
    DecodeWave& wave = waves.back();
    for (size_t member = 0; member < together.size(); ++member) {
      together[member].first_chunk = wave.chunks.size() + member;
    }
    for (int64_t key = first.keys.begin; key < first.keys.end; key += first.chunk_keys) {
      wave.tasks.push_back({wave.chunks.size(), together.size()});
      for (size_t member = 0; member < together.size(); ++member) {
        wave.chunks.push_back(
            {wave.pairs.size() + member, {key, std::min(first.keys.end, key + first.chunk_keys)}, wave.partials});
        wave.partials += first.pairs();
      }
    }
    wave.pairs.insert(wave.pairs.end(), together.begin(), together.end());
  }
  return waves;
}

std::vector<DecodeSegment> Segments(const DecodePairs& pairs, Range keys) {
  const auto visible = pairs.sequence->visible.subspan(pairs.rows.begin, pairs.rows.size());
  std::vector<int64_t> cuts = {keys.begin, keys.end};
  for (const Range& range : visible) {
    for (int64_t cut : {range.begin, range.end}) {
      if (cut > keys.begin && cut < keys.end) cuts.push_back(cut);
    }
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<DecodeSegment> segments;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    DecodeSegment segment{{cuts[i], cuts[i + 1]}, {}};
    const int heads = pairs.heads.size();
    for (int row = 0; row < static_cast<int>(visible.size()); ++row) {
      if (visible[row].begin > segment.keys.begin || visible[row].end < segment.keys.end) continue;
      if (!segment.runs.empty() && segment.runs.back().first + segment.runs.back().count == row * heads) {
        segment.runs.back().count += heads;
      } else {
        segment.runs.push_back({row * heads, heads});
      }
    }
    if (!segment.runs.empty()) segments.push_back(std::move(segment));
  }
  return segments;
}

}  // namespace tessera::cpu
