#include "runtime/latent/latent_record.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

namespace tessera {
namespace {

using Json = nlohmann::json;

constexpr const char* kTransform = "tessera.latent.transform";
constexpr const char* kSeed = "tessera.latent.seed";
constexpr const char* kTokens = "tessera.latent.tokens";
constexpr const char* kVersion = "tessera.latent.version";

std::string LayerKey(int layer) {
  return absl::StrCat("tessera.latent.layer.", layer);
}

Status Bad(const std::string& key, const std::string& text, const std::string& allowed) {
  return absl::InvalidArgumentError(
      absl::StrCat("metadata \"", key, "\" is \"", text.substr(0, 60), "\"; allowed: ", allowed));
}

template <typename Number>
StatusOr<Number> ReadNumber(const SafetensorsMetadata& metadata, const std::string& key) {
  const auto it = metadata.find(key);
  const std::string text = it == metadata.end() ? "" : it->second;
  Number number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0) return Bad(key, text, "a count");
  return number;
}

// nullopt unless `json` is an array of `size` finite numbers.
std::optional<std::vector<double>> Numbers(const Json& json, int size) {
  if (!json.is_array() || json.size() != static_cast<size_t>(size)) return std::nullopt;
  std::vector<double> numbers;
  for (const Json& value : json) {
    if (!value.is_number() || !std::isfinite(value.get<double>())) return std::nullopt;
    numbers.push_back(value.get<double>());
  }
  return numbers;
}

StatusOr<LayerRecord> ReadLayer(const std::string& key, const std::string& text, int latent) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Bad(key, text, "a JSON object");
  LayerRecord layer;
  if (json.contains("energy")) {
    const auto energy = Numbers(json["energy"], latent);
    if (!energy || *std::ranges::min_element(*energy) < 0) {
      return Bad(key, text, absl::StrCat("an energy of ", latent, " numbers from 0"));
    }
    layer.column_energy = *energy;
  }
  const Json mu = json.value("mu", Json::object());
  if (!mu.is_object()) return Bad(key, text, "an object mu");
  for (const auto& [groups_text, values] : mu.items()) {
    int groups = 0;
    const char* last = groups_text.data() + groups_text.size();
    const bool count = std::from_chars(groups_text.data(), last, groups).ptr == last;
    const auto numbers = count && groups > 0 && latent % groups == 0 ? Numbers(values, groups) : std::nullopt;
    if (!numbers) return Bad(key, text, "as many mu as there are groups");
    layer.mu[groups] = *numbers;
  }
  return layer;
}

}  // namespace

std::vector<double> EnergyShares(const LayerRecord& layer, int groups) {
  if (layer.column_energy.empty()) return {};
  const int64_t width = std::ssize(layer.column_energy) / groups;
  std::vector<double> shares(groups);
  double total = 0;
  for (int64_t column = 0; column < width * groups; ++column) {
    shares[column / width] += layer.column_energy[column];
    total += layer.column_energy[column];
  }
  for (double& share : shares) share = total > 0 ? share / total : 1.0 / groups;
  return shares;
}

SafetensorsMetadata RecordMetadata(const LatentRecord& record) {
  return {{kTransform, std::string(Name(record.transform))},
          {kSeed, absl::StrCat(record.seed)},
          {kTokens, absl::StrCat(record.tokens)},
          {kVersion, record.version}};
}

std::pair<std::string, std::string> LayerMetadata(const LatentRecord& record, int layer) {
  const LayerRecord& entry = record.layers[layer];
  Json json = Json::object();
  if (!entry.column_energy.empty()) json["energy"] = entry.column_energy;
  for (const auto& [groups, mu] : entry.mu) json["mu"][std::to_string(groups)] = mu;
  return {LayerKey(layer), json.dump()};
}

StatusOr<std::optional<LatentRecord>> ReadLatentRecord(const SafetensorsMetadata& metadata, int layers, int latent) {
  const auto transform = metadata.find(kTransform);
  if (transform == metadata.end()) return std::optional<LatentRecord>();
  LatentRecord record;
  TESSERA_ASSIGN_OR_RETURN(record.transform, ParseLatentTransform(transform->second));
  TESSERA_ASSIGN_OR_RETURN(record.seed, ReadNumber<uint64_t>(metadata, kSeed));
  TESSERA_ASSIGN_OR_RETURN(record.tokens, ReadNumber<int64_t>(metadata, kTokens));
  if (const auto version = metadata.find(kVersion); version != metadata.end()) record.version = version->second;
  for (int layer = 0; layer < layers; ++layer) {
    const auto entry = metadata.find(LayerKey(layer));
    if (entry == metadata.end()) return Bad(LayerKey(layer), "", "a JSON object");
    TESSERA_ASSIGN_OR_RETURN(LayerRecord read, ReadLayer(entry->first, entry->second, latent));
    record.layers.push_back(std::move(read));
  }
  return std::optional(std::move(record));
}

}  // namespace tessera
