#include "launcher/lm/method.h"

#include <algorithm>

#include "launcher/lm/decode_shapes.h"
#include "runtime/latent/latent_record.h"

namespace tessera::launcher {
namespace {

constexpr std::pair<const char*, SoftmaxMultiplier> kMultipliers[] = {
    {"one", SoftmaxMultiplier::kOne},
    {"inverse-energy", SoftmaxMultiplier::kInverseEnergy},
    {"calibrated", SoftmaxMultiplier::kCalibrated}};

std::vector<std::string> MethodNames() {
  std::vector<std::string> names{"exact"};
  for (DecodeMethod method : AllDecodeMethods()) names.emplace_back(Name(method));
  return names;
}

}  // namespace

std::string Method::ToString() const {
  if (exact) return "exact";
  if (method != DecodeMethod::kTpla) return std::string(Name(method));
  const auto* entry = std::ranges::find(kMultipliers, multiplier, &std::pair<const char*, SoftmaxMultiplier>::second);
  return absl::StrFormat("tpla g=%d mu=%s norm=%s", groups, entry->first, local_norm ? "local" : "exact");
}

void AddMethodFlags(CLI::App& command, MethodFlags& flags) {
  std::vector<std::string> names = MethodNames();
  names.insert(names.end(), {"auto", "all"});
  command
      .add_option(
          "--method", flags.methods,
          "how attention is computed (comma-separated): exact is prefill, sequence sharded; head shards heads;\n"
          "tpla shards latent columns (approximate); the others shard the cache by tokens; auto is the exact\n"
          "decode method with the lowest predicted time; all is all of them")
      ->delimiter(',')
      ->check(CLI::IsMember(names))
      ->default_str("exact");
  command
      .add_option("--groups", flags.groups, "tpla: latent slices (comma-separated; the number of ranks unless given)")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--mu", flags.multipliers,
                  "tpla: multiplier of a slice's logits: one, inverse-energy, calibrated (comma-separated)")
      ->delimiter(',')
      ->check(CLI::IsMember({"one", "inverse-energy", "calibrated"}))
      ->default_str("one");
  command
      .add_option("--norm", flags.norms,
                  "tpla: exact norm of the whole latent, or local, estimated from the slice (comma-separated)")
      ->delimiter(',')
      ->check(CLI::IsMember({"exact", "local"}))
      ->default_str("exact");
}

DecodeProblem DecodeProblemOf(const MlaShape& shape, int64_t context_tokens, int64_t batch, int64_t query_tokens,
                              DType dtype) {
  DecodeProblem problem = LayerProblem(shape);
  problem.context_tokens = context_tokens;
  problem.batch = batch;
  problem.query_tokens = query_tokens;
  problem.dtype = dtype;
  return problem;
}

StatusOr<std::vector<Method>> ResolveMethods(const MethodFlags& flags, const DecodeProblem& problem, int ranks) {
  std::vector<std::string> names;
  for (const std::string& name : flags.methods) {
    if (name == "all") {
      for (const std::string& each : MethodNames()) names.push_back(each);
    } else {
      names.push_back(name);
    }
  }
  const std::vector<int> groups = flags.groups.empty() ? std::vector{ranks} : flags.groups;
  std::vector<Method> methods;
  for (const std::string& name : names) {
    Method method;
    method.exact = name == "exact";
    if (name == "auto") {
      TESSERA_ASSIGN_OR_RETURN(const DecodePrice price, ChooseDecodeMethod(problem, ranks, MachineModel()));
      method.method = price.spec.method;
    } else if (!method.exact) {
      TESSERA_ASSIGN_OR_RETURN(method.method, ParseDecodeMethod(name));
    }
    if (method.exact || method.method != DecodeMethod::kTpla) {
      methods.push_back(method);
      continue;
    }
    for (int g : groups) {
      if (ranks % g != 0) {
        std::string allowed = "1";
        for (int divisor = 2; divisor <= ranks; ++divisor) {
          if (ranks % divisor == 0) absl::StrAppend(&allowed, ", ", divisor);
        }
        return absl::InvalidArgumentError(
            absl::StrFormat("--groups %d does not divide %d ranks; allowed: %s", g, ranks, allowed));
      }
      for (const std::string& multiplier : flags.multipliers) {
        for (const std::string& norm : flags.norms) {
          method.groups = g;
          method.multiplier = std::ranges::find(kMultipliers, multiplier, [](const auto& entry) {
                                return std::string_view(entry.first);
                              })->second;
          method.local_norm = norm == "local";
          methods.push_back(method);
        }
      }
    }
  }
  return methods;
}

StatusOr<std::vector<TplaFactors>> FactorsOf(const Method& method, const LoadedModel& model) {
  std::vector<TplaFactors> factors;
  if (method.exact || method.method != DecodeMethod::kTpla) return factors;
  const ModelConfig& config = model.config;
  factors.resize(config.layers);
  if (method.multiplier == SoftmaxMultiplier::kOne && !method.local_norm) return factors;
  TESSERA_ASSIGN_OR_RETURN(const auto record,
                           ReadLatentRecord(model.checkpoint.metadata(), config.layers, config.attention.latent));
  const auto unknown = [&](int layer, const char* what) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s needs %s, and %s records none for layer %d: convert the model with `tessera mla convert --calibration`%s",
        method.ToString(), what, model.checkpoint.directory(), layer,
        method.multiplier == SoftmaxMultiplier::kCalibrated ? absl::StrFormat(" --groups %d", method.groups) : ""));
  };
  for (int layer = 0; layer < config.layers; ++layer) {
    if (!record) return unknown(layer, "what a conversion measures");
    const LayerRecord& known = record->layers[layer];
    const std::vector<double> energy = EnergyShares(known, method.groups);
    if (energy.empty() && (method.local_norm || method.multiplier == SoftmaxMultiplier::kInverseEnergy)) {
      return unknown(layer, "the energy of the latents");
    }
    if (method.local_norm) factors[layer].energy_share = energy;
    if (method.multiplier == SoftmaxMultiplier::kInverseEnergy) {
      for (double share : energy) {
        if (share <= 0) {
          return absl::FailedPreconditionError(
              absl::StrFormat("%s: a slice of layer %d has no energy, so that its multiplier would be infinite",
                              method.ToString(), layer));
        }
        factors[layer].softmax_multiplier.push_back(static_cast<float>(1 / share));
      }
    }
    if (method.multiplier == SoftmaxMultiplier::kCalibrated) {
      const auto fitted = known.mu.find(method.groups);
      if (fitted == known.mu.end()) return unknown(layer, "fitted multipliers");
      factors[layer].softmax_multiplier.assign(fitted->second.begin(), fitted->second.end());
    }
  }
  return factors;
}

}  // namespace tessera::launcher
