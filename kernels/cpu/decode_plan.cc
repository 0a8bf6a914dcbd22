#include "kernels/cpu/decode_plan.h"

#include <algorithm>
#include <iterator>

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

Range UnionOf(const DecodeSequence& sequence, const Range& rows) {
  Range keys;
  for (const Range& visible : sequence.visible.subspan(rows.begin, rows.size())) {
    if (visible.empty()) continue;
    keys = keys.empty() ? visible : Range{std::min(keys.begin, visible.begin), std::max(keys.end, visible.end)};
  }
  return keys;
}

// The pairs of a sequence, those of neighbouring heads that see the same keys with as many pairs each together: they
// share tasks.
std::vector<std::vector<DecodePairs>> GroupsOf(const DecodeArgs& args, const DecodeSequence& sequence) {
  std::vector<std::vector<DecodePairs>> groups;
  const auto rows = static_cast<int64_t>(sequence.visible.size());
  for (int kv_head = 0; kv_head < args.cache.kv_heads; ++kv_head) {
    const HeadRange heads = QueryHeadsOf(args, kv_head);
    for (int head = heads.begin; head < heads.end; head += kMostPairs) {
      const HeadRange some{head, std::min(heads.end, head + kMostPairs)};
      const int64_t step = std::max(1, kMostPairs / some.size());
      for (int64_t row = 0; row < rows; row += step) {
        const Range together{row, std::min(rows, row + step)};
        DecodePairs pairs{&sequence, kv_head, together, some, UnionOf(sequence, together)};
        const auto fits = [&](const std::vector<DecodePairs>& group) {
          const DecodePairs& first = group.front();
          return pairs.kv_head == first.kv_head + static_cast<int>(group.size()) && pairs.rows == first.rows &&
                 pairs.keys == first.keys && pairs.heads.size() == first.heads.size() &&
                 static_cast<int>(group.size() + 1) * first.pairs() <= kMostPairs;
        };
        if (groups.empty() || !fits(groups.back())) groups.emplace_back();
        pairs.first_pair = static_cast<int>(groups.back().size()) * pairs.pairs();
        groups.back().push_back(pairs);
      }
    }
  }
  return groups;
}

}  // namespace

std::vector<DecodeWave> PlanDecode(const DecodeArgs& args) {
  const size_t most = std::max<size_t>(1, kWaveBytes / (PaddedWidth(args.cache.v_width) * sizeof(float)));
  std::vector<DecodeWave> waves;
  for (const DecodeSequence& sequence : args.sequences) {
    std::vector<std::vector<DecodePairs>> groups = GroupsOf(args, sequence);
    for (std::vector<DecodePairs>& group : groups) {
      const DecodePairs& first = group.front();
      const int64_t chunk_keys = ChunkKeys(args, first.pairs(), first.keys.size(), std::ssize(groups));
      for (DecodePairs& pairs : group) pairs.chunk_keys = chunk_keys;
      const size_t each = static_cast<size_t>(first.pairs()) * group.size();
      const size_t partials = first.chunks() * each;
      if (waves.empty() || waves.back().partials + partials > most) waves.emplace_back();
      DecodeWave& wave = waves.back();
      for (DecodePairs& pairs : group) pairs.first_task = wave.tasks.size();
      for (int64_t key = first.keys.begin; key < first.keys.end; key += chunk_keys) {
        wave.tasks.push_back(
            {wave.pairs.size(), group.size(), {key, std::min(first.keys.end, key + chunk_keys)}, wave.partials});
        wave.partials += each;
      }
      wave.pairs.insert(wave.pairs.end(), group.begin(), group.end());
    }
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
