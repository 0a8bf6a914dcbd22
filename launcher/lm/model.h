// A decoder-only language model with latent attention and dense SwiGLU layers, in DeepSeek-V2's tensor names:
// everything but its attention, which is given per layer.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kernels/linear.h"
#include "runtime/latent/checkpoint.h"
#include "runtime/latent/config.h"

namespace tessera::launcher {

// normed [rows, D] -> out [rows, D], fp32.
using AttendLayer = std::function<Status(int layer, const float* normed, float* out)>;

class LanguageModel {
 public:
  // Reads and copies all weights but those of attention; `compute` is what products are computed in. Errors name the
  // tensor; models with routed experts, tied embeddings of another kind or another activation are refused by name.
  static StatusOr<LanguageModel> Load(const Checkpoint& checkpoint, const ModelConfig& config, DType compute,
                                      int threads);

  const ModelConfig& config() const { return config_; }
  // tokens [rows] -> final hidden state [rows, D], before the last norm. InvalidArgument names a token out of range.
  StatusOr<std::vector<float>> Run(std::span<const int> tokens, const AttendLayer& attend) const;
  // hidden [rows, D], as Run returns it -> logits [rows, vocabulary].
  StatusOr<std::vector<float>> Logits(std::span<const float> hidden) const;

 private:
  struct Layer {
    std::vector<float> attention_norm, mlp_norm;  // [D]
    Linear gate, up, down;
  };
  LanguageModel(const ModelConfig& config, int threads, Linear head)
      : config_(config), threads_(threads), head_(std::move(head)) {}
  void Norm(std::span<const float> hidden, std::span<const float> gamma, std::vector<float>& normed) const;

  ModelConfig config_;
  int threads_;
  std::vector<float> embedding_;  // [vocabulary, D]
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  Linear head_;
};

}  // namespace tessera::launcher
