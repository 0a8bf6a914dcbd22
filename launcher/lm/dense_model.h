// The language model on one rank in fp32, with latent attention in its expanded form: for calibration, and as the
// yardstick of the distributed runner.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "launcher/lm/latent_tap.h"
#include "launcher/lm/model.h"
#include "runtime/latent/mla_projections.h"

namespace tessera::launcher {

class DenseModel {
 public:
  // Copies all weights. Errors as LanguageModel::Load and ReadMlaWeights.
  static StatusOr<DenseModel> Create(const Checkpoint& checkpoint, const ModelConfig& config, int threads);

  // The most tokens of one sequence: max_positions, but at most 4096.
  int64_t window() const { return rope_.positions(); }
  // One sequence from position 0. `tokens`: ids below the vocabulary, at most window() of them. `logits`: [tokens,
  // vocabulary], or null when only `sink` is wanted; `sink` may be empty.
  Status Forward(std::span<const int> tokens, const LatentSink& sink, std::vector<float>* logits) const;

 private:
  struct Layer {
    MlaProjections maps;          // with a gamma of ones, so that latents can be seen before gamma
    std::vector<float> kv_gamma;  // [C]
  };
  DenseModel(LanguageModel language, RopeTable rope, const AttentionKernel* kernel, int threads)
      : language_(std::move(language)), rope_(std::move(rope)), kernel_(kernel), threads_(threads) {}
  Status Attend(int index, std::span<const int64_t> positions, const float* normed, const LatentSink& sink,
                float* out) const;

  LanguageModel language_;
  RopeTable rope_;
  const AttentionKernel* kernel_;
  int threads_;
  std::vector<Layer> layers_;
};

}  // namespace tessera::launcher
