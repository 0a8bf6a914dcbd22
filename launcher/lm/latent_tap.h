// What calibration hears of a model while it reads a text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/latent/checkpoint.h"
#include "runtime/latent/config.h"

namespace tessera::launcher {

// Some tokens as one layer sees them.
struct LatentRows {
  int layer = 0;
  int64_t rows = 0;
  std::span<const float> latents;  // [rows, C], normalised, before gamma
  std::span<const float> queries;  // [rows, h, dn], the nope part of the queries
};
using LatentSink = std::function<void(const LatentRows&)>;

// Runs the model over all of `text`, in windows of the context it was trained at, and calls `sink` for every window and
// layer, in order, from this thread. Returns the number of tokens.
// Unimplemented when this program cannot run the model (experts, a tokenizer other than "bytes"), and what to do then.
StatusOr<int64_t> TapLatents(const Checkpoint& checkpoint, const ModelConfig& config, std::string_view text,
                             int threads, const LatentSink& sink);

}  // namespace tessera::launcher
