// Scores windows of a text by one method after another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "collectives/communicator.h"
#include "launcher/lm/decode_runner.h"
#include "launcher/lm/exact_runner.h"
#include "launcher/lm/method.h"
#include "launcher/progress.h"

namespace tessera::launcher {

// Windows of the text: window i is given bytes [context i, context (i + 1)) and predicts the byte after each.
struct Windows {
  std::vector<int> bytes;
  int64_t context = 0;
  int64_t count = 0;
  std::span<const int> Given(int64_t window, int64_t first, int64_t tokens) const {
    return std::span(bytes).subspan(window * context + first, tokens);
  }
  int Next(int64_t window, int64_t position) const { return bytes[window * context + position + 1]; }
};

// Of all windows, over all ranks.
struct Score {
  double bits = 0;
  int64_t bytes = 0;
  double seconds = 0;
  int64_t cache_bytes = 0;  // per token and layer on this rank; 0 when nothing is cached
  std::string plan;
};

class Scorer {
 public:
  // Everything outlives the scorer. `query_tokens`: decoded in one step; 0 = all that are left of a window.
  Scorer(Communicator& comm, const LoadedModel& model, const Windows& windows, const ExactOptions& exact,
         int64_t query_tokens, Progress& progress)
      : comm_(comm),
        model_(model),
        windows_(windows),
        exact_(exact),
        query_tokens_(query_tokens),
        progress_(progress) {}

  // Collective; the same on every rank but for cache_bytes. Positions before `prefix` are not counted.
  StatusOr<Score> Exact(int64_t prefix);
  // Collective. The first `prefix` tokens of every window are prefilled exactly, the rest is decoded by `method`.
  StatusOr<Score> Decoded(const Method& method, int64_t prefix);

 private:
  // The one exact runner of all scores: it holds the model's attention weights.
  StatusOr<ExactRunner*> Runner();
  Status DecodeWindows(DecodeRunner& runner, std::span<const SequenceId> sequences, int64_t first, int64_t prefix,
                       Score& score);

  Communicator& comm_;
  const LoadedModel& model_;
  const Windows& windows_;
  ExactOptions exact_;
  int64_t query_tokens_;
  Progress& progress_;
  std::unique_ptr<ExactRunner> runner_;
};

}  // namespace tessera::launcher
