// What a model's config.json says, in DeepSeek-V2/V3's field names.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/mla.h"
#include "runtime/base/status.h"

namespace tessera {

struct ModelConfig {
  MlaShape attention;
  int layers = 0;              // num_hidden_layers
  int vocabulary = 0;          // vocab_size
  int intermediate = 0;        // intermediate_size of the dense MLP
  int routed_experts = 0;      // n_routed_experts; 0 = every layer is dense
  int first_dense_layers = 0;  // first_k_dense_replace
  float norm_epsilon = 1e-6f;
  int64_t max_positions = 0;  // max_position_embeddings
  bool tied_embeddings = false;
  std::string activation;  // hidden_act
  std::string tokenizer;   // "bytes" for the bundled model; empty when not stated
};

// Reads DIR/config.json. NotFound, or InvalidArgument naming the field, its value and what is allowed.
StatusOr<ModelConfig> ReadModelConfig(const std::string& directory);

}  // namespace tessera
