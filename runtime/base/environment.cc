#include "runtime/base/environment.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <initializer_list>

#include "absl/strings/numbers.h"

namespace tessera {
namespace {

constexpr EnvironmentVariable kDeadline = {"TESSERA_DEADLINE_SECONDS", "30",
                                           "longest silence of a peer before the run ends with an error, in seconds"};
constexpr EnvironmentVariable kThreads = {"TESSERA_THREADS", "cores / ranks on the node", "compute threads per rank"};
constexpr EnvironmentVariable kKernel = {"TESSERA_KERNEL", "auto", "attention kernel by name; see `tessera doctor`"};
constexpr EnvironmentVariable kDataDirectory = {"TESSERA_DATA_DIR", "unset",
                                                "folder of full-size tensors that tests use when it is set"};
constexpr std::array kVariables = {kDeadline, kThreads, kKernel, kDataDirectory};

std::optional<std::string> Value(std::string_view name) {
  const char* text = std::getenv(std::string(name).c_str());
  return text == nullptr ? std::nullopt : std::optional<std::string>(text);
}

Status Malformed(const EnvironmentVariable& variable, const std::string& value, std::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat("environment variable ", std::string(variable.name), " is \"", value,
                                                 "\"; allowed: ", std::string(allowed)));
}

// The first of the names that holds a non-negative number.
int FirstCount(std::initializer_list<std::string_view> names, int otherwise) {
  for (std::string_view name : names) {
    const std::optional<std::string> text = Value(name);
    int count = 0;
    if (text && absl::SimpleAtoi(*text, &count) && count >= 0) return count;
  }
  return otherwise;
}

// The entry of `node` in a list such as "4(x2),3": two nodes of four tasks and one of three.
int SlurmTasksOfNode(std::string_view list, int node, int otherwise) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    std::string_view group = list.substr(0, comma);
    list = comma == std::string_view::npos ? "" : list.substr(comma + 1);
    int nodes = 1, tasks = 0;
    if (const size_t times = group.find("(x"); times != std::string_view::npos && group.ends_with(')')) {
      if (!absl::SimpleAtoi(std::string(group.substr(times + 2, group.size() - times - 3)), &nodes)) return otherwise;
      group = group.substr(0, times);
    }
    if (!absl::SimpleAtoi(std::string(group), &tasks)) return otherwise;
    if (node < nodes) return tasks;
    node -= nodes;
  }
  return otherwise;
}

}  // namespace

std::span<const EnvironmentVariable> EnvironmentVariables() {
  return kVariables;
}

std::optional<std::string> RawValue(const EnvironmentVariable& variable) {
  return Value(variable.name);
}

StatusOr<Environment> ReadEnvironment() {
  Environment result;
  if (const auto text = Value(kDeadline.name)) {
    if (!absl::SimpleAtod(*text, &result.deadline_seconds) || !(result.deadline_seconds >= 0.1) ||
        !(result.deadline_seconds <= 86400)) {
      return Malformed(kDeadline, *text, "0.1 to 86400 seconds");
    }
  }
  if (const auto text = Value(kThreads.name)) {
    if (!absl::SimpleAtoi(*text, &result.threads) || result.threads < 1 || result.threads > 4096) {
      return Malformed(kThreads, *text, "1 to 4096");
    }
  }
  if (const auto text = Value(kKernel.name); text && *text != "auto") {
    if (text->empty()) return Malformed(kKernel, *text, "auto or a name that `tessera doctor` lists");
    result.kernel = *text;
  }
  result.data_directory = Value(kDataDirectory.name).value_or("");
  return result;
}

std::vector<std::string> UnknownVariables() {
  std::vector<std::string> unknown;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const std::string_view name = text.substr(0, text.find('='));
    if (name.starts_with("TESSERA_") &&
        std::ranges::find(kVariables, name, &EnvironmentVariable::name) == kVariables.end()) {
      unknown.emplace_back(name);
    }
  }
  return unknown;
}

LaunchPlace ReadLaunchPlace() {
  LaunchPlace place;
  place.rank = FirstCount({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"}, 0);
  // SLURM_NTASKS is set in a batch script too, where there is one process; SLURM_STEP_NUM_TASKS comes from srun.
  place.ranks = std::max(1, FirstCount({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}, 1));
  const int slurm_local =
      SlurmTasksOfNode(Value("SLURM_STEP_TASKS_PER_NODE").value_or(""), FirstCount({"SLURM_NODEID"}, 0), place.ranks);
  place.local_ranks =
      std::clamp(FirstCount({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"}, slurm_local), 1, place.ranks);
  return place;
}

}  // namespace tessera
