// The tessera program: parses the command line, starts MPI where it is needed, and turns errors into exit codes.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>
#include <thread>

#include "collectives/agreement.h"
#include "collectives/mpi/communicator.h"
#include "collectives/mpi/session.h"
#include "launcher/affinity.h"
#include "launcher/build_info.h"
#include "launcher/command.h"
#include "launcher/exit_code.h"
#include "runtime/engine/attention.h"

namespace tessera::launcher {
namespace {

// How parsing the command line ended.
struct Parsed {
  Selection selection;
  std::optional<ExitCode> exit;  // set when there is nothing to run
  std::string text;              // help, or what is wrong with the flags
};

Parsed ParseCommandLine(int argc, char** argv) {
  CLI::App app("Tessera: exact attention over sequences that do not fit one device");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string(kVersion) + " (" + kRevision + ")");
  app.footer(std::string("Run `tessera COMMAND --help` for flags and examples.\n") + ExitCodeHelp());
  Parsed parsed;
  AddAttendCommand(app, parsed.selection);
  AddBenchCommand(app, parsed.selection);
  AddPlanCommand(app, parsed.selection);
  AddBalanceCommand(app, parsed.selection);
  AddScoreCommand(app, parsed.selection);
  AddGenerateCommand(app, parsed.selection);
  AddDoctorCommand(app, parsed.selection);
  AddMlaCommand(app, parsed.selection);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    // The innermost command that was named is the one whose help is wanted.
    const CLI::App* command = &app;
    while (!command->get_subcommands().empty()) command = command->get_subcommands().front();
    parsed.exit = ExitCode::kOk;
    parsed.text = command->help();
  } catch (const CLI::Success& version) {
    parsed.exit = ExitCode::kOk;
    parsed.text = std::string(version.what()) + "\n";
  } catch (const CLI::ParseError& error) {
    parsed.exit = ExitCode::kUsage;
    parsed.text = std::string(error.what()) + " (see tessera --help)";
  }
  return parsed;
}

uint64_t DigestOf(int argc, char** argv) {
  uint64_t digest = 0xcbf29ce484222325;  // FNV-1a over the words and their ends
  for (int i = 1; i < argc; ++i) {
    for (const char* c = argv[i];; ++c) {
      digest = (digest ^ static_cast<unsigned char>(*c)) * 0x100000001b3;
      if (*c == '\0') break;
    }
  }
  return digest;
}

void PrintError(const Status& status) {
  std::fprintf(stderr, "tessera: error: %s\n", std::string(status.message()).c_str());
}

int Finish(const Parsed& parsed, bool root) {
  if (root && parsed.exit == ExitCode::kOk) std::fputs(parsed.text.c_str(), stdout);
  if (root && parsed.exit != ExitCode::kOk) PrintError(absl::InvalidArgumentError(parsed.text));
  return static_cast<int>(*parsed.exit);
}

int Finish(const StatusOr<bool>& passed, bool root) {
  if (!passed.ok()) {
    if (root) PrintError(passed.status());
    return static_cast<int>(ExitCodeOf(passed.status()));
  }
  return static_cast<int>(*passed ? ExitCode::kOk : ExitCode::kCheckFailed);
}

// Every rank that meets a broken communicator would print and abort; the lowest one alive gets the first word.
[[noreturn]] void Abort(MpiSession& session, const Status& status) {
  std::this_thread::sleep_for(std::chrono::milliseconds(100) * std::min(session.rank(), 20));
  session.Abort(static_cast<int>(ExitCodeOf(status)), std::string(status.message()));
}

StatusOr<bool> RunOnRanks(Communicator& world, const Parsed& parsed, Context& context, int argc, char** argv) {
  context.world = &world;
  // Between waits, which restore it, a rank of this program reads, plans, writes or prints, for as long as that takes.
  world.ReportProgress({RankState::kComputing, -1});
  StatusOr<Environment> environment = ReadEnvironment();
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, environment.status(), "starting"));
  context.environment = *std::move(environment);
  TESSERA_RETURN_IF_ERROR(AgreeOnHash(world, DigestOf(argc, argv), "the command line"));
  if (parsed.exit) return true;
  TESSERA_ASSIGN_OR_RETURN(const std::vector<int> local,
                           AllGatherValue(world, context.place.local_ranks, "comparing nodes"));
  if (std::ranges::count(local, local[0]) == world.size()) context.uniform_local_ranks = local[0];
  TESSERA_ASSIGN_OR_RETURN(const std::vector<CoreSet> cores, AllGatherValue(world, UsableCoreSet(), "comparing cores"));
  context.core_share = CoreShare(cores, world.rank());
  if (parsed.selection.needs_ranks) {
    // Threads that compute are started later and stay where this one is.
    const CoreMask kept = Placement(cores, world.rank(), ReadNumaNodes());
    if (kept != cores[world.rank()].bits) KeepTo(kept);
    return parsed.selection.action(context);
  }
  // A command for one process under mpirun: rank 0 runs it, the others learn how it went.
  context.world = nullptr;
  const StatusOr<bool> passed = world.rank() == 0 ? parsed.selection.action(context) : true;
  TESSERA_RETURN_IF_ERROR(AgreeOnStatus(world, passed.status(), "running on rank 0"));
  TESSERA_ASSIGN_OR_RETURN(const auto all, AllGatherValue(world, static_cast<int>(*passed), "running on rank 0"));
  return all[0] != 0;
}

int RunWithMpi(const Parsed& parsed, Context& context, int argc, char** argv) {
  StatusOr<std::unique_ptr<MpiSession>> session = MpiSession::Create(&argc, &argv, {.watch_termination = true});
  if (!session.ok()) {
    PrintError(session.status());
    return static_cast<int>(ExitCodeOf(session.status()));
  }
  double deadline = parsed.selection.deadline_seconds;
  if (const StatusOr<Environment> environment = ReadEnvironment(); deadline <= 0 && environment.ok()) {
    deadline = environment->deadline_seconds;
  }
  MpiOptions options;
  if (deadline > 0) options.deadline = std::chrono::milliseconds(static_cast<int64_t>(deadline * 1000));
  StatusOr<std::unique_ptr<Communicator>> world = MakeMpiWorld(options);
  if (!world.ok()) Abort(**session, world.status());

  const StatusOr<bool> passed = RunOnRanks(**world, parsed, context, argc, argv);
  if (!passed.ok() && !IsAgreed(passed.status())) Abort(**session, passed.status());
  const bool root = (*session)->rank() == 0;
  if (passed.ok() && parsed.exit) return Finish(parsed, root);
  return Finish(passed, root);
}

int Main(int argc, char** argv) {
  const Parsed parsed = ParseCommandLine(argc, argv);
  Context context;
  context.place = ReadLaunchPlace();
  // Under a launcher even a usage error needs MPI: ranks started differently must find each other to say so.
  if (context.place.ranks > 1 || (!parsed.exit && parsed.selection.needs_ranks)) {
    return RunWithMpi(parsed, context, argc, argv);
  }
  if (parsed.exit) return Finish(parsed, true);
  StatusOr<Environment> environment = ReadEnvironment();
  if (!environment.ok()) return Finish(environment.status(), true);
  context.environment = *std::move(environment);
  return Finish(parsed.selection.action(context), true);
}

}  // namespace
}  // namespace tessera::launcher

int main(int argc, char** argv) {
  const int code = tessera::launcher::Main(argc, argv);
  // A table that nobody received was not printed.
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  std::fprintf(stderr, "tessera: error: cannot write standard output\n");
  return code != 0 ? code : static_cast<int>(tessera::launcher::ExitCode::kSystem);
}
