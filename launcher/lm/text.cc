#include "launcher/lm/text.h"

#include <fstream>
#include <iterator>

namespace tessera::launcher {

StatusOr<std::vector<int>> Tokenize(std::string_view text, const ModelConfig& config) {
  if (config.tokenizer != "bytes" || config.vocabulary != 256) {
    return absl::UnimplementedError(absl::StrFormat(
        "config.json: tokenizer \"%s\" with vocab_size %d; only models of bytes (\"tokenizer\": \"bytes\", vocab_size "
        "256) can read text",
        config.tokenizer, config.vocabulary));
  }
  std::vector<int> tokens;
  for (char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

StatusOr<std::vector<int>> ReadTokens(const std::string& path, const ModelConfig& config) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(path + ": cannot be read");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (file.bad()) return absl::UnavailableError(path + ": reading failed");
  return Tokenize(text, config);
}

}  // namespace tessera::launcher
