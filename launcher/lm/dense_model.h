// A dense model on one rank in fp32: embedding, latent attention in its expanded form, SwiGLU. For calibration, and as
// the yardstick of the distributed runner.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "launcher/lm/latent_tap.h"

namespace tessera::launcher {

class DenseModel {
 public:
  // Packs all weights. Unimplemented for models with experts or an activation other than silu; NotFound and
  // InvalidArgument as Checkpoint::Matrix.
  static StatusOr<DenseModel> Create(const Checkpoint& checkpoint, const ModelConfig& config, int threads);
  DenseModel(DenseModel&&) noexcept;
  DenseModel& operator=(DenseModel&&) noexcept;
  ~DenseModel();

  // One sequence from position 0. `tokens`: ids below the vocabulary, at most max_positions (and 4096) of them.
  // `logits`: [tokens, vocabulary], or null when only `sink` is wanted; `sink` may be empty.
  Status Forward(std::span<const int> tokens, const LatentSink& sink, std::vector<float>* logits) const;

 private:
  struct State;
  explicit DenseModel(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The ids of a text under the model's tokenizer. Unimplemented unless that is "bytes".
StatusOr<std::vector<int>> Tokenize(const ModelConfig& config, std::string_view text);

}  // namespace tessera::launcher
