// tessera mla convert: rewrites a checkpoint in another basis of its latents, so that their columns can be cut over
// ranks.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "absl/strings/str_join.h"
#include "launcher/build_info.h"
#include "launcher/mla_calibration.h"
#include "launcher/mla_command.h"
#include "launcher/progress.h"
#include "launcher/staged_directory.h"
#include "launcher/table.h"
#include "runtime/latent/latent_record.h"

namespace tessera::launcher {
namespace {

namespace fs = std::filesystem;

struct Flags {
  std::string model;
  std::string output;
  std::string transform;
  CalibrationFlags calibration;
  std::vector<int> groups;
  uint64_t seed = 1;
  int threads = 0;
  bool force = false;
};

constexpr const char* kDown = "kv_a_proj_with_mqa.weight";
constexpr const char* kNorm = "kv_a_layernorm.weight";
constexpr const char* kUp = "kv_b_proj.weight";

// What is known before the first byte is written.
struct Source {
  ModelConfig config;
  Checkpoint checkpoint;
  BasisChoice choice;
};

StatusOr<Source> OpenSource(const Flags& flags) {
  TESSERA_ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(flags.model));
  TESSERA_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::Open(flags.model));
  TESSERA_ASSIGN_OR_RETURN(const auto record,
                           ReadLatentRecord(checkpoint.metadata(), config.layers, config.attention.latent));
  if (record) {
    return absl::FailedPreconditionError(
        absl::StrCat(flags.model, " was converted before (transform ", std::string(Name(record->transform)),
                     "); convert the original, because every conversion rounds the weights again"));
  }
  TESSERA_ASSIGN_OR_RETURN(BasisChoice choice, ParseBasisChoice(flags.transform, flags.seed));
  TESSERA_RETURN_IF_ERROR(CheckGroups(config.attention.latent, flags.groups));
  TESSERA_RETURN_IF_ERROR(StagedDirectory::CheckTarget(flags.output, flags.force));
  std::error_code ignored;
  const fs::path model = fs::weakly_canonical(flags.model, ignored),
                 output = fs::weakly_canonical(flags.output, ignored);
  const auto inside = [](const fs::path& inner, const fs::path& outer) {
    return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
  };
  if (inside(output, model) || inside(model, output)) {
    return absl::InvalidArgumentError(absl::StrCat("--output ", flags.output, " and --model ", flags.model,
                                                   " contain one another; allowed: different directories"));
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    TESSERA_RETURN_IF_ERROR(ReadMlaWeights(checkpoint, config.attention, layer).status());
  }
  return Source{std::move(config), std::move(checkpoint), std::move(choice)};
}

struct Plan {
  std::vector<Matrix64> bases;  // one per layer
  LatentRecord record;
};

StatusOr<Plan> MakePlan(const Source& source, const std::optional<Calibration>& calibration,
                        const std::vector<int>& groups) {
  Plan plan;
  plan.record.transform = source.choice.transform;
  plan.record.seed = source.choice.seed;
  plan.record.version = absl::StrCat(kVersion, " (", kRevision, ")");
  plan.record.tokens = calibration ? calibration->tokens : 0;
  for (int layer = 0; layer < source.config.layers; ++layer) {
    TESSERA_RETURN_IF_ERROR(StagedDirectory::Interrupted());
    TESSERA_ASSIGN_OR_RETURN(Matrix64 basis,
                             MakeBasis(source.choice, source.config, layer, calibration ? &*calibration : nullptr));
    LayerRecord entry;
    if (calibration) {
      const LayerMoments& moments = calibration->layers[layer];
      entry.column_energy = ColumnEnergy(moments.latents, basis);
      for (const int g : groups) {
        if (!moments.queries) break;
        for (const GroupFit& fit : FitGroups(moments.latents, *moments.queries, basis, g)) {
          entry.mu[g].push_back(fit.mu);
        }
      }
    }
    plan.bases.push_back(std::move(basis));
    plan.record.layers.push_back(std::move(entry));
  }
  return plan;
}

// A matrix in the dtype of the original. InvalidArgument when a value leaves that dtype's range.
StatusOr<std::vector<std::byte>> Round(const Matrix64& matrix, DType dtype, const std::string& name) {
  std::vector<std::byte> bytes(matrix.values.size() * SizeInBytes(dtype));
  for (int64_t i = 0; i < std::ssize(matrix.values); ++i) {
    StoreFromFloat(bytes.data(), dtype, i, static_cast<float>(matrix.values[i]));
    if (std::isfinite(LoadAsFloat(bytes.data(), dtype, i))) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\": ", matrix.values[i],
                                                   " of the new basis is beyond the range of ",
                                                   std::string(Name(dtype))));
  }
  return bytes;
}

// The new contents of the tensors that a conversion changes; one layer in memory at a time.
class Rewriter {
 public:
  Rewriter(const Source& source, const Plan& plan) : source_(source), plan_(plan) {
    for (int layer = 0; layer < source.config.layers; ++layer) {
      // The identity has nothing to do to the down-projection.
      if (source.choice.transform != LatentTransform::kIdentity) layer_of_[AttentionPrefix(layer) + kDown] = layer;
      for (const char* name : {kNorm, kUp}) layer_of_[AttentionPrefix(layer) + name] = layer;
    }
  }
  // The layer whose conversion changes a tensor, or -1.
  int LayerOf(const std::string& name) const {
    const auto it = layer_of_.find(name);
    return it == layer_of_.end() ? -1 : it->second;
  }
  StatusOr<std::vector<std::byte>> Contents(const std::string& name, DType dtype) {
    const int layer = LayerOf(name);
    const MlaShape& shape = source_.config.attention;
    if (name.ends_with(kNorm)) return Round({shape.latent, 1, std::vector<double>(shape.latent, 1.0)}, dtype, name);
    if (layer != layer_) {
      TESSERA_ASSIGN_OR_RETURN(const MlaWeights weights, ReadMlaWeights(source_.checkpoint, shape, layer));
      weights_ = Reparameterize(shape, weights, plan_.bases[layer]);
      layer_ = layer;
    }
    return Round(name.ends_with(kDown) ? weights_.kv_down : weights_.kv_up, dtype, name);
  }

 private:
  const Source& source_;
  const Plan& plan_;
  std::map<std::string, int> layer_of_;
  int layer_ = -1;  // of weights_
  LatentWeights weights_;
};

Status WriteFile(const SafetensorsFile& file, const std::string& target, const LatentRecord& record,
                 Rewriter& rewriter) {
  SafetensorsMetadata metadata = file.metadata();
  for (auto& [key, text] : RecordMetadata(record)) metadata[key] = text;
  for (const SafetensorsTensor& tensor : file.tensors()) {
    const int layer = rewriter.LayerOf(tensor.name);
    if (layer >= 0 && tensor.name.ends_with(kUp)) metadata.insert(LayerMetadata(record, layer));
  }
  TESSERA_ASSIGN_OR_RETURN(SafetensorsWriter writer,
                           SafetensorsWriter::CreateLike(target, file.tensors(), 0, metadata));
  for (const SafetensorsTensor& tensor : file.tensors()) {
    TESSERA_RETURN_IF_ERROR(StagedDirectory::Interrupted());
    if (rewriter.LayerOf(tensor.name) < 0) {
      TESSERA_RETURN_IF_ERROR(writer.WriteBytes(tensor.name, file.Bytes(tensor)));
      continue;
    }
    TESSERA_ASSIGN_OR_RETURN(const std::vector<std::byte> bytes, rewriter.Contents(tensor.name, *tensor.dtype));
    TESSERA_RETURN_IF_ERROR(writer.WriteBytes(tensor.name, bytes));
  }
  return writer.Commit();
}

// Configuration, tokenizer, index, licence: whatever lies beside the weights, but not other weights, which would still
// be in the old basis.
Status CopySmallFiles(const std::string& from, const std::string& to) {
  constexpr uintmax_t kLargest = 64 << 20;
  std::error_code error;
  for (fs::directory_iterator it(from, error), end; !error && it != end; it.increment(error)) {
    const std::string extension = it->path().extension().string();
    const bool weights = extension == ".safetensors" || extension == ".bin" || extension == ".pt" ||
                         extension == ".pth" || extension == ".gguf";
    if (!it->is_regular_file(error) || weights || it->file_size(error) > kLargest) continue;
    fs::copy_file(it->path(), fs::path(to) / it->path().filename(), error);
    if (error) break;
  }
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(), absl::StrCat("cannot copy the files of ", from, " to ", to));
}

Status CheckSpace(const Checkpoint& checkpoint, const std::string& directory) {
  int64_t needed = 0;
  for (const SafetensorsFile& file : checkpoint.files()) {
    std::error_code ignored;
    needed += static_cast<int64_t>(fs::file_size(file.path(), ignored));
  }
  std::error_code error;
  const fs::space_info space = fs::space(directory, error);
  if (error || static_cast<int64_t>(space.available) >= needed) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the converted model needs ", needed, " bytes beside ", directory,
                                                   ", where ", space.available, " are free"));
}

std::string Shares(const std::vector<double>& values) {
  return absl::StrJoin(values, " ", [](std::string* out, double value) { absl::StrAppendFormat(out, "%.3f", value); });
}

void Print(const Flags& flags, const Plan& plan, const std::vector<int>& groups) {
  std::printf("%s: %d layers, transform %s\n", flags.output.c_str(), static_cast<int>(plan.bases.size()),
              flags.transform.c_str());
  if (plan.record.tokens == 0) return;
  std::printf("over %lld calibration tokens, per group of latent columns:\n",
              static_cast<long long>(plan.record.tokens));
  Table table({"layer", "groups", "energy", "fitted mu"});
  for (size_t layer = 0; layer < plan.bases.size(); ++layer) {
    const LayerRecord& entry = plan.record.layers[layer];
    for (const int g : groups) {
      const auto mu = entry.mu.find(g);
      table.Add({absl::StrCat(layer), absl::StrCat(g), Shares(EnergyShares(entry, g)),
                 mu == entry.mu.end() ? "-" : Shares(mu->second)});
    }
  }
  std::fputs(table.ToString().c_str(), stdout);
}

StatusOr<bool> Convert(const Flags& flags, const Context& context) {
  Progress progress(context.root());
  progress.Say("reading headers");
  StagedDirectory staging;
  TESSERA_ASSIGN_OR_RETURN(const Source source, OpenSource(flags));
  const int threads = context.Threads(flags.threads);
  if (!flags.calibration.text.empty()) progress.Say("reading " + flags.calibration.text);
  TESSERA_ASSIGN_OR_RETURN(const std::optional<Calibration> calibration,
                           Calibrate(source.checkpoint, source.config, flags.calibration, threads));
  const std::vector<int> groups =
      flags.groups.empty() ? PossibleGroups(source.config.attention.latent, 8) : flags.groups;
  progress.Say("finding bases");
  TESSERA_ASSIGN_OR_RETURN(const Plan plan, MakePlan(source, calibration, groups));

  TESSERA_RETURN_IF_ERROR(staging.Create(flags.output));
  TESSERA_RETURN_IF_ERROR(CheckSpace(source.checkpoint, staging.path()));
  TESSERA_RETURN_IF_ERROR(CopySmallFiles(flags.model, staging.path()));
  Rewriter rewriter(source, plan);
  for (const SafetensorsFile& file : source.checkpoint.files()) {
    const std::string name = fs::path(file.path()).filename();
    progress.Say("writing " + name);
    TESSERA_RETURN_IF_ERROR(WriteFile(file, absl::StrCat(staging.path(), "/", name), plan.record, rewriter));
  }
  TESSERA_RETURN_IF_ERROR(staging.Commit(flags.force));
  Print(flags, plan, groups);
  return true;
}

}  // namespace

void AddMlaConvertCommand(CLI::App& mla, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = mla.add_subcommand("convert", "rewrite a checkpoint in another orthogonal basis of its latents");
  command->add_option("--model", flags->model, "directory of a checkpoint in DeepSeek-V2 or V3 layout")->required();
  command->add_option("--output", flags->output, "directory to write; it appears when it is complete")->required();
  command
      ->add_option("--transform", flags->transform,
                   "identity (fold the norm's weights only), hadamard, pca, or matrix:FILE, a safetensors file with\n"
                   "F64 tensors layers.N.basis [C, C], or one `basis`, whose columns are the new basis")
      ->required();
  command->add_option("--seed", flags->seed, "of the Hadamard transform's signs")->capture_default_str();
  AddCalibrationFlags(*command, flags->calibration);
  command->add_option("--groups", flags->groups, "numbers of groups to fit mu for and to show (default: 2, 4, 8)")
      ->delimiter(',');
  command->add_option("--threads", flags->threads, "threads for the calibration")->check(CLI::Range(1, 4096));
  command->add_flag("--force", flags->force, "replace an existing output directory, once the new one is complete");
  command->footer(
      "The model computes what it did, up to the rounding of its dtype; all tensors but the latent's projections and\n"
      "norm are copied bit for bit. Files are staged in OUTPUT.tmp-PID, which only a killed process leaves behind.\n"
      "Examples:\n"
      "  tessera mla convert --model launcher/data/kjv-mla --output kjv-pca --transform pca \\\n"
      "      --calibration launcher/data/kjv-heldout-64k.txt\n"
      "  tessera mla convert --model DeepSeek-V3-bf16 --output v3-hadamard --transform hadamard --seed 7");
  command->callback([flags, &selection] {
    const StatusOr<BasisChoice> choice = ParseBasisChoice(flags->transform, flags->seed);
    if (!choice.ok()) throw CLI::ValidationError("mla convert", std::string(choice.status().message()));
    if (choice->transform == LatentTransform::kPca && flags->calibration.text.empty() &&
        flags->calibration.moments.empty()) {
      throw CLI::ValidationError("mla convert", "--transform pca needs --calibration or --moments");
    }
    selection = {[flags](const Context& context) { return Convert(*flags, context); }, 0, /*needs_ranks=*/false};
  });
}

}  // namespace tessera::launcher
