// What a conversion leaves in a checkpoint's metadata: which change of basis was made and what is known of the latents
// in the new one. Keys begin with "tessera.latent."; a layer's entry lies in the file that holds its kv_b_proj.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/base/safetensors.h"
#include "runtime/base/status.h"
#include "runtime/latent/reparameterization.h"

namespace tessera {

struct LayerRecord {
  std::vector<double> column_energy;      // [C] in the new basis, sums to 1; empty when nothing was measured
  std::map<int, std::vector<double>> mu;  // number of groups to fitted multipliers [groups]; see GroupFit
};

struct LatentRecord {
  LatentTransform transform = LatentTransform::kIdentity;
  uint64_t seed = 0;    // of Hadamard signs: layer n has those of seed + n
  std::string version;  // of the program that converted
  int64_t tokens = 0;   // of the calibration; 0 = none
  std::vector<LayerRecord> layers;
};

// Energy per group of a layer, [groups], summing to 1; empty when none was measured. Groups divide C.
std::vector<double> EnergyShares(const LayerRecord& layer, int groups);

// The entries that every file gets, and the one of a layer.
SafetensorsMetadata RecordMetadata(const LatentRecord& record);
std::pair<std::string, std::string> LayerMetadata(const LatentRecord& record, int layer);

// nullopt for a checkpoint that was never converted. InvalidArgument when an entry is not what a conversion writes for
// `layers` layers of width `latent`.
StatusOr<std::optional<LatentRecord>> ReadLatentRecord(const SafetensorsMetadata& metadata, int layers, int latent);

}  // namespace tessera
