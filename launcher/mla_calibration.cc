#include "launcher/mla_calibration.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

#include "absl/strings/str_join.h"

namespace tessera::launcher {
namespace {

// A tensor of F64 or F32, in fp64.
StatusOr<Matrix64> ReadMatrix64(const SafetensorsFile& file, const std::string& name, int64_t rows, int64_t columns) {
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsTensor* tensor, file.Find(name));
  const std::vector<int64_t> needed = columns == 1 ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, columns};
  if (tensor->shape != needed || (tensor->type != "F64" && tensor->type != "F32")) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor \"", name, "\" is ", Describe(*tensor),
                                                   "; needed: F64 or F32 [", absl::StrJoin(needed, ", "), "]"));
  }
  Matrix64 matrix{rows, columns, std::vector<double>(rows * columns)};
  const std::byte* bytes = file.Bytes(*tensor).data();  // of any alignment
  if (tensor->type == "F64") {
    std::memcpy(matrix.values.data(), bytes, matrix.values.size() * sizeof(double));
    return matrix;
  }
  for (size_t i = 0; i < matrix.values.size(); ++i) {
    float value = 0;
    std::memcpy(&value, bytes + i * sizeof value, sizeof value);
    matrix.values[i] = value;
  }
  return matrix;
}

bool Has(const SafetensorsFile& file, const std::string& name) {
  return file.Find(name).ok();
}

void Scale(std::vector<double>& values, int64_t factor) {
  for (double& value : values) value *= static_cast<double>(factor);
}

Status WithFile(const Status& status, const std::string& path, const std::string& what) {
  if (status.ok()) return status;
  return Status(status.code(), absl::StrCat(path, ": ", what, ": ", std::string(status.message())));
}

}  // namespace

StatusOr<Calibration> CalibrateOnText(const Checkpoint& checkpoint, const ModelConfig& config, const std::string& path,
                                      int threads) {
  std::ifstream file(path, std::ios::binary);
  if (!file.is_open()) return absl::NotFoundError(absl::StrCat("cannot open calibration text ", path));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) return absl::NotFoundError(absl::StrCat("cannot read calibration text ", path));
  const MlaShape& shape = config.attention;
  // A token is a byte at least, so this is known before the model runs.
  if (std::ssize(text) < shape.latent) {
    return absl::InvalidArgumentError(absl::StrCat("calibration text ", path, " has ", text.size(),
                                                   " bytes; needed: at least ", shape.latent,
                                                   " tokens, one per column of the latent"));
  }
  std::vector<LatentMoment> latents(config.layers, LatentMoment(shape.latent));
  std::vector<QueryMoment> queries(config.layers, QueryMoment(shape.heads, shape.nope));
  Calibration calibration;
  TESSERA_ASSIGN_OR_RETURN(calibration.tokens,
                           TapLatents(checkpoint, config, text, threads, [&](const LatentRows& rows) {
                             latents[rows.layer].Add(rows.latents);
                             queries[rows.layer].Add(rows.queries);
                           }));
  if (calibration.tokens < shape.latent) {
    return absl::InvalidArgumentError(absl::StrCat("calibration text ", path, " has ", calibration.tokens,
                                                   " tokens; needed: at least ", shape.latent,
                                                   ", one per column of the latent"));
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    TESSERA_ASSIGN_OR_RETURN(const MlaWeights weights, ReadMlaWeights(checkpoint, shape, layer));
    if (!std::ranges::all_of(latents[layer].sum().values, [](double value) { return std::isfinite(value); })) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.directory(), ": the latents of layer ", layer,
                                                     " are not finite; some weight before them is not"));
    }
    calibration.layers.push_back({std::move(latents[layer]), queries[layer].Absorbed(shape, weights)});
  }
  return calibration;
}

StatusOr<Calibration> ReadMoments(const ModelConfig& config, const std::string& path) {
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  Calibration calibration;
  const auto stated = file.metadata().find("tokens");
  const std::string text = stated == file.metadata().end() ? "" : stated->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), calibration.tokens);
  const int latent = config.attention.latent;
  if (error != std::errc() || end != text.data() + text.size() || calibration.tokens < latent) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": metadata \"tokens\" is \"", text,
                                                   "\"; allowed: a count of at least ", latent,
                                                   ", one token per column of the latent"));
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    const std::string prefix = absl::StrCat("layers.", layer, ".");
    TESSERA_ASSIGN_OR_RETURN(Matrix64 sum, ReadMatrix64(file, prefix + "latent_moment", latent, latent));
    Matrix64 mean{latent, 1, std::vector<double>(latent)};
    if (Has(file, prefix + "latent_mean")) {
      TESSERA_ASSIGN_OR_RETURN(mean, ReadMatrix64(file, prefix + "latent_mean", latent, 1));
    }
    Scale(sum.values, calibration.tokens);
    Scale(mean.values, calibration.tokens);
    StatusOr<LatentMoment> moment = LatentMoment::FromSums(std::move(sum), std::move(mean.values), calibration.tokens);
    TESSERA_RETURN_IF_ERROR(WithFile(moment.status(), path, absl::StrCat("layer ", layer)));
    LayerMoments moments{*std::move(moment), {}};
    if (Has(file, prefix + "query_moment")) {
      TESSERA_ASSIGN_OR_RETURN(moments.queries, ReadMatrix64(file, prefix + "query_moment", latent, latent));
      Scale(moments.queries->values, calibration.tokens);
    }
    calibration.layers.push_back(std::move(moments));
  }
  return calibration;
}

void AddCalibrationFlags(CLI::App& command, CalibrationFlags& flags) {
  constexpr char kMomentsHelp[] =
      "safetensors file of moments for models that this program cannot run: F64 or F32 tensors\n"
      "layers.N.latent_moment [C, C], the mean over tokens of c^T c with c the normalised latent before gamma;\n"
      "optional layers.N.latent_mean [C] and layers.N.query_moment [C, C], the mean over tokens of the sum over\n"
      "heads of Q^T Q with Q = q_nope Wuk^T diag(gamma); metadata \"tokens\": how many tokens";
  auto* text = command.add_option("--calibration", flags.text, "text whose latents are measured");
  command.add_option("--moments", flags.moments, kMomentsHelp)->excludes(text);
}

StatusOr<std::optional<Calibration>> Calibrate(const Checkpoint& checkpoint, const ModelConfig& config,
                                               const CalibrationFlags& flags, int threads) {
  std::optional<Calibration> calibration;
  if (!flags.text.empty()) {
    TESSERA_ASSIGN_OR_RETURN(calibration, CalibrateOnText(checkpoint, config, flags.text, threads));
  } else if (!flags.moments.empty()) {
    TESSERA_ASSIGN_OR_RETURN(calibration, ReadMoments(config, flags.moments));
  }
  return calibration;
}

StatusOr<BasisChoice> ParseBasisChoice(const std::string& text, uint64_t seed) {
  BasisChoice choice;
  choice.seed = seed;
  const size_t colon = text.find(':');
  const std::string name = text.substr(0, colon);
  StatusOr<LatentTransform> transform = ParseLatentTransform(name);
  const bool custom = transform.ok() && *transform == LatentTransform::kCustom;
  if (custom && colon != std::string::npos) choice.file = text.substr(colon + 1);
  if (!transform.ok() || custom == choice.file.empty() || (!custom && colon != std::string::npos)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--transform: \"", text, "\"; allowed: identity, hadamard, pca, matrix:FILE"));
  }
  choice.transform = *transform;
  return choice;
}

StatusOr<Matrix64> MakeBasis(const BasisChoice& choice, const ModelConfig& config, int layer,
                             const Calibration* calibration) {
  const int latent = config.attention.latent;
  switch (choice.transform) {
    case LatentTransform::kIdentity:
      return IdentityBasis(latent);
    case LatentTransform::kHadamard:
      return HadamardBasis(latent, choice.seed + static_cast<uint64_t>(layer));
    case LatentTransform::kPca:
      if (calibration == nullptr) {
        return absl::FailedPreconditionError("PCA needs the latents of a text: give --calibration or --moments");
      }
      return PcaBasis(calibration->layers[layer].latents);
    case LatentTransform::kCustom:
      break;
  }
  TESSERA_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(choice.file));
  const std::string own = absl::StrCat("layers.", layer, ".basis");
  const std::string name = Has(file, own) || !Has(file, "basis") ? own : "basis";
  TESSERA_ASSIGN_OR_RETURN(Matrix64 basis, ReadMatrix64(file, name, latent, latent));
  TESSERA_RETURN_IF_ERROR(WithFile(CheckOrthogonal(basis, latent), choice.file, absl::StrCat("tensor \"", name, "\"")));
  return basis;
}

Status CheckGroups(int latent, const std::vector<int>& groups) {
  for (const int g : groups) {
    if (g >= 1 && latent % g == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("--groups ", g, " does not divide the ", latent,
                                                   " columns of the latent; allowed: 1, ",
                                                   absl::StrJoin(PossibleGroups(latent, latent), ", ")));
  }
  return absl::OkStatus();
}

}  // namespace tessera::launcher
