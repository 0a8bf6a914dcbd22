// tessera doctor: what this build and this machine offer, what is missing, and the command that fixes it.
#include <cstdio>
#include <memory>

#include "absl/strings/str_join.h"
#include "kernels/attention.h"
#include "launcher/build_info.h"
#include "launcher/command.h"
#include "launcher/gpus.h"
#include "launcher/host.h"
#include "launcher/table.h"

namespace tessera::launcher {
namespace {

void PrintBuild() {
  std::printf("build\n");
  std::printf("  version    %s (%s)\n", kVersion, kRevision);
  std::printf("  compiler   %s, %s%s%s\n", kCompiler, kBuildType, *kSanitizers ? ", sanitizers " : "", kSanitizers);
  std::printf("  MPI        %s\n", kMpiLibrary);
  std::printf("  CUDA       %s\n", kCuda);
}

// Returns how many findings there are.
int PrintMachine(const Context& context) {
  int findings = 0;
  const std::vector<std::string> features = CpuFeatures();
  std::printf("\nmachine\n");
  std::printf("  processor  %s, %d usable cores\n", CpuModel().c_str(), UsableCores());
  std::printf("  features   %s\n",
              features.empty() ? "none of AVX2, AVX-512, AMX" : absl::StrJoin(features, " ").c_str());
  std::printf("  memory     %s, %s available\n", FormatBytes(static_cast<double>(TotalMemoryBytes())).c_str(),
              FormatBytes(static_cast<double>(AvailableMemoryBytes())).c_str());
  std::printf("  ranks      %d, %d of them on this node, %d threads each by default\n", context.place.ranks,
              context.place.local_ranks,
              context.core_share > 0 ? ThreadsOfShare(context.core_share) : DefaultThreads(context.place.local_ranks));
  // Ranks that are bound to cores of their own may be more than the cores of one.
  if (context.core_share > 0 ? context.core_share < 1 - 1e-6 : context.place.local_ranks > UsableCores()) {
    ++findings;
    std::printf("  finding: %d ranks share %d cores. Source launcher/mpi-env.sh so that waiting ranks yield.\n",
                context.place.local_ranks, UsableCores());
  }
  if (std::string(kBuildType) != "Release" && std::string(kBuildType) != "RelWithDebInfo") {
    ++findings;
    std::printf("  finding: a %s build is slow. Build with: cmake --preset release && cmake --build --preset release\n",
                kBuildType);
  }
  return findings;
}

void PrintKernels() {
  std::printf("\nattention kernels, fastest first (for heads of width 64)\n");
  for (const AttentionKernel* kernel : AttentionKernels()) {
    std::printf("  %-12s", std::string(kernel->name()).c_str());
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
      const std::string reason = kernel->WhyNot({dtype, 64, 64});
      std::printf(" %s: %s;", std::string(Name(dtype)).c_str(), reason.empty() ? "yes" : reason.c_str());
    }
    std::printf("\n");
  }
}

int PrintEnvironment() {
  std::printf("\nenvironment\n");
  Table table({"  variable", "value", "default", "meaning"});
  for (const EnvironmentVariable& variable : EnvironmentVariables()) {
    table.Add({"  " + std::string(variable.name), RawValue(variable).value_or("-"), std::string(variable.default_text),
               std::string(variable.meaning)});
  }
  std::fputs(table.ToString().c_str(), stdout);
  const std::vector<std::string> unknown = UnknownVariables();
  for (const std::string& name : unknown) {
    std::printf("  finding: %s is set but means nothing. Unset it: unset %s\n", name.c_str(), name.c_str());
  }
  return static_cast<int>(unknown.size());
}

StatusOr<bool> Examine(const Context& context) {
  PrintBuild();
  int findings = PrintMachine(context);
  PrintKernels();
  findings += PrintGpus(context.place.local_ranks);
  findings += PrintEnvironment();
  std::printf("\n%s\n", findings == 0 ? "nothing is missing" : absl::StrCat(findings, " findings above").c_str());
  return true;
}

}  // namespace

void AddDoctorCommand(CLI::App& app, Selection& selection) {
  CLI::App* command = app.add_subcommand("doctor", "what this build and machine offer and what is missing");
  command->footer("Examples:\n  tessera doctor\n  mpirun -n 4 tessera doctor");
  command->callback([&selection] { selection = {Examine, 0, /*needs_ranks=*/false}; });
}

}  // namespace tessera::launcher
