// tessera mla inspect: how a checkpoint's latents would fare when their columns are cut over ranks.
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_join.h"
#include "launcher/mla_calibration.h"
#include "launcher/mla_command.h"
#include "launcher/output_file.h"
#include "launcher/progress.h"
#include "launcher/table.h"
#include "runtime/latent/latent_record.h"

namespace tessera::launcher {
namespace {

struct Flags {
  std::string model;
  CalibrationFlags calibration;
  std::vector<int> groups;
  uint64_t seed = 1;
  int threads = 0;
  std::string json;
};

// One layer in one basis, cut into so many groups.
struct Cut {
  int layer = 0;
  std::string basis;
  int groups = 0;
  std::vector<double> energy;
  std::vector<double> mu, error, fitted_error;  // empty when queries are not known
};

std::string Join(const std::vector<double>& values) {
  if (values.empty()) return "-";
  return absl::StrJoin(values, " ", [](std::string* out, double value) { absl::StrAppendFormat(out, "%.3f", value); });
}

// One figure to compare bases by: a group's wrong softmax weighs what the group contributes, its share of the energy.
double WeightedError(const Cut& cut) {
  double sum = 0;
  for (size_t group = 0; group < cut.error.size(); ++group) {
    sum += cut.energy[group] * cut.error[group] * cut.error[group];
  }
  return std::sqrt(sum);
}

nlohmann::ordered_json ToJson(const Cut& cut) {
  nlohmann::ordered_json json = {
      {"layer", cut.layer}, {"basis", cut.basis}, {"groups", cut.groups}, {"energy", cut.energy}};
  if (!cut.mu.empty()) {
    json["mu"] = cut.mu;
    json["logit_error"] = cut.error;
    json["fitted_logit_error"] = cut.fitted_error;
    json["weighted_logit_error"] = WeightedError(cut);
  }
  return json;
}

StatusOr<std::vector<Cut>> MeasuredCuts(const ModelConfig& config, const Calibration& calibration,
                                        const std::vector<int>& groups, const Flags& flags, Progress& progress) {
  std::vector<Cut> cuts;
  for (int layer = 0; layer < config.layers; ++layer) {
    progress.Say(absl::StrCat("layer ", layer));
    for (const LatentTransform transform :
         {LatentTransform::kIdentity, LatentTransform::kHadamard, LatentTransform::kPca}) {
      const BasisChoice choice{transform, flags.seed, ""};
      const StatusOr<Matrix64> basis = MakeBasis(choice, config, layer, &calibration);
      // A width without a Hadamard matrix leaves the other bases to be looked at.
      if (!basis.ok() && transform == LatentTransform::kHadamard) continue;
      TESSERA_RETURN_IF_ERROR(basis.status());
      const LayerMoments& moments = calibration.layers[layer];
      for (const int g : groups) {
        Cut cut{layer, std::string(Name(transform)), g, EnergyShares(moments.latents, *basis, g), {}, {}, {}};
        if (moments.queries) {
          for (const GroupFit& fit : FitGroups(moments.latents, *moments.queries, *basis, g)) {
            cut.mu.push_back(fit.mu);
            cut.error.push_back(fit.error);
            cut.fitted_error.push_back(fit.fitted_error);
          }
        }
        cuts.push_back(std::move(cut));
      }
    }
  }
  return cuts;
}

// What a conversion measured when it was made.
std::vector<Cut> RecordedCuts(const LatentRecord& record, const std::vector<int>& groups) {
  std::vector<Cut> cuts;
  for (size_t layer = 0; layer < record.layers.size(); ++layer) {
    for (const int g : groups) {
      const LayerRecord& entry = record.layers[layer];
      if (entry.column_energy.empty()) continue;
      cuts.push_back(
          {static_cast<int>(layer), std::string(Name(record.transform)), g, EnergyShares(entry, g), {}, {}, {}});
    }
  }
  return cuts;
}

StatusOr<bool> Inspect(const Flags& flags, const Context& context) {
  Progress progress(context.root());
  TESSERA_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(flags.model));
  TESSERA_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(flags.model));
  const int latent = config.attention.latent;
  TESSERA_ASSIGN_OR_RETURN(const auto record, ReadLatentRecord(checkpoint.metadata(), config.layers, latent));
  TESSERA_RETURN_IF_ERROR(CheckGroups(latent, flags.groups));
  TESSERA_RETURN_IF_ERROR(CheckDistinct(
      {{"--calibration", flags.calibration.text}, {"--moments", flags.calibration.moments}}, {{"--json", flags.json}}));
  if (!flags.json.empty()) TESSERA_RETURN_IF_ERROR(SafetensorsWriter::CheckWritable(flags.json));
  const std::vector<int> groups = flags.groups.empty() ? PossibleGroups(latent, 4) : flags.groups;
  const int threads = context.Threads(flags.threads);
  progress.Say("measuring latents");
  TESSERA_ASSIGN_OR_RETURN(const std::optional<Calibration> calibration,
                           Calibrate(checkpoint, config, flags.calibration, threads));
  std::vector<Cut> cuts;
  if (calibration) {
    TESSERA_ASSIGN_OR_RETURN(cuts, MeasuredCuts(config, *calibration, groups, flags, progress));
  } else if (record && record->tokens > 0) {
    cuts = RecordedCuts(*record, groups);
  } else {
    return absl::FailedPreconditionError(
        absl::StrCat(flags.model, record ? " was converted without a calibration" : " was not converted",
                     ", so nothing is known of its latents: give --calibration or --moments"));
  }

  const int64_t tokens = calibration ? calibration->tokens : record->tokens;
  std::printf("%s: %d layers, latent of %d columns, %d heads; %s; %lld tokens\n", flags.model.c_str(), config.layers,
              latent, config.attention.heads,
              record ? absl::StrCat("converted (", std::string(Name(record->transform)), ")").c_str() : "not converted",
              static_cast<long long>(tokens));
  Table table({"layer", "basis", "groups", "energy per group", "logit error", "weighted", "with mu", "mu"});
  nlohmann::ordered_json json = {{"schema", "tessera.mla.inspect/1"},
                                 {"model", flags.model},
                                 {"converted", record ? std::string(Name(record->transform)) : std::string()},
                                 {"layers", config.layers},
                                 {"latent", latent},
                                 {"tokens", tokens},
                                 {"cuts", nlohmann::ordered_json::array()}};
  for (const Cut& cut : cuts) {
    table.Add({absl::StrCat(cut.layer), cut.basis, absl::StrCat(cut.groups), Join(cut.energy), Join(cut.error),
               cut.error.empty() ? "-" : absl::StrFormat("%.3f", WeightedError(cut)), Join(cut.fitted_error),
               Join(cut.mu)});
    json["cuts"].push_back(ToJson(cut));
  }
  std::fputs(table.ToString().c_str(), stdout);
  if (!flags.json.empty()) {
    TESSERA_RETURN_IF_ERROR(
        WriteAside(flags.json, json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"));
  }
  return true;
}

}  // namespace

void AddMlaInspectCommand(CLI::App& mla, Selection& selection) {
  const auto flags = std::make_shared<Flags>();
  CLI::App* command = mla.add_subcommand("inspect", "latent energy per shard and predicted logit errors, per layer");
  command->add_option("--model", flags->model, "directory of a checkpoint in DeepSeek-V2 or V3 layout")->required();
  AddCalibrationFlags(*command, flags->calibration);
  command->add_option("--groups", flags->groups, "numbers of groups to look at (default: 2, 3, 4 where they divide)")
      ->delimiter(',');
  command->add_option("--seed", flags->seed, "of the Hadamard transform's signs")->capture_default_str();
  command->add_option("--threads", flags->threads, "threads for the calibration")->check(CLI::Range(1, 4096));
  command->add_option("--json", flags->json, "file to write the figures to, for benchmarks/plots/mla_inspect.py");
  command->footer(
      "Logit error: rms(full - partial) / rms(full) of the latent logits that a group computes from its own columns,\n"
      "over all pairs of calibration tokens; each query's logits less their mean, which softmax does not see, and\n"
      "without the rope term, which every group has in full. \"weighted\": rms over the groups, weighed by energy.\n"
      "\"with mu\": after the factor mu on the partial logit that fits best.\n"
      "Without --calibration a converted model shows what its conversion measured.\n"
      "Example:\n"
      "  tessera mla inspect --model launcher/data/kjv-mla --calibration launcher/data/kjv-heldout-64k.txt --groups "
      "2,4");
  command->callback([flags, &selection] {
    selection = {[flags](const Context& context) { return Inspect(*flags, context); }, 0, /*needs_ranks=*/false};
  });
}

}  // namespace tessera::launcher
