// Text as tokens and back.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/latent/config.h"

namespace tessera::launcher {

// Unimplemented, naming the tokenizer, unless the model reads bytes.
StatusOr<std::vector<int>> Tokenize(std::string_view text, const ModelConfig& config);
// The tokens of a whole file. NotFound names it.
StatusOr<std::vector<int>> ReadTokens(const std::string& path, const ModelConfig& config);

}  // namespace tessera::launcher
