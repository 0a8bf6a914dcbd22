// Second moments of a model's latents, made from a text or read from a file, and the bases that follow from them.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launcher/lm/latent_tap.h"
#include "runtime/latent/reparameterization.h"

namespace tessera::launcher {

struct LayerMoments {
  LatentMoment latents;
  std::optional<Matrix64> queries;  // QueryMoment::Absorbed; what fits of mu and logit errors need
};
struct Calibration {
  int64_t tokens = 0;
  std::vector<LayerMoments> layers;
};

// Runs the model over the text file. InvalidArgument when the text has fewer tokens than the latent has columns.
StatusOr<Calibration> CalibrateOnText(const Checkpoint& checkpoint, const ModelConfig& config, const std::string& path,
                                      int threads);

// The file is as the help of --moments says.
StatusOr<Calibration> ReadMoments(const ModelConfig& config, const std::string& path);

// At most one of the two paths is given; nullopt without either.
struct CalibrationFlags {
  std::string text;
  std::string moments;
};
void AddCalibrationFlags(CLI::App& command, CalibrationFlags& flags);  // --calibration --moments
StatusOr<std::optional<Calibration>> Calibrate(const Checkpoint& checkpoint, const ModelConfig& config,
                                               const CalibrationFlags& flags, int threads);

// A change of basis as a flag names it: "identity", "hadamard", "pca" or "matrix:FILE".
struct BasisChoice {
  LatentTransform transform = LatentTransform::kIdentity;
  uint64_t seed = 1;  // Hadamard: layer n has the signs of seed + n
  std::string file;   // of F64 tensors layers.N.basis [C, C], or one `basis` for all layers; columns are the new basis
};
StatusOr<BasisChoice> ParseBasisChoice(const std::string& text, uint64_t seed);
// FailedPrecondition when PCA has no calibration; the errors of the basis itself.
StatusOr<Matrix64> MakeBasis(const BasisChoice& choice, const ModelConfig& config, int layer,
                             const Calibration* calibration);

// InvalidArgument with the numbers of groups that divide the latent, unless all of `groups` do.
Status CheckGroups(int latent, const std::vector<int>& groups);

}  // namespace tessera::launcher
