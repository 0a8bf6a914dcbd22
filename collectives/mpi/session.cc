#include "collectives/mpi/session.h"

#include <mpi.h>
#include <pthread.h>
#include <unistd.h>

#include <chrono>
#include <string>

#include "collectives/mpi/error.h"
#include "collectives/mpi/process.h"

namespace tessera {
namespace {

using namespace std::chrono_literals;

// Default heartbeats reach the peers of a 16-rank job in this time, and mpirun grants a second.
constexpr auto kTimeToGossip = 400ms;
constexpr unsigned kAbortSeconds = 10;  // MPI_Abort takes well under one

// One write, so that lines of several ranks do not mix.
void PrintLine(int rank, std::string_view message) {
  const std::string line = absl::StrCat("tessera: rank ", rank, ": ", std::string(message), "\n");
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace

StatusOr<std::unique_ptr<MpiSession>> MpiSession::Create(int* argc, char*** argv, const MpiSessionOptions& options) {
  std::unique_ptr<MpiSession> session(new MpiSession);
  TESSERA_RETURN_IF_ERROR(session->Initialize(argc, argv, options));
  return session;
}

Status MpiSession::Initialize(int* argc, char*** argv, const MpiSessionOptions& options) {
  if (options.watch_termination) {
    sigset_t terminations;
    sigemptyset(&terminations);
    sigaddset(&terminations, SIGTERM);
    // Before MPI starts threads of its own: they inherit the mask.
    pthread_sigmask(SIG_BLOCK, &terminations, &previous_mask_);
  }
  int threads = MPI_THREAD_SINGLE;
  TESSERA_RETURN_IF_ERROR(
      internal::MpiStatus(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &threads), "MPI_Init_thread"));
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_set_errhandler, MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_rank, MPI_COMM_WORLD, &rank_);
  TESSERA_MPI_RETURN_IF_ERROR(MPI_Comm_size, MPI_COMM_WORLD, &size_);
  if (options.watch_termination) watcher_ = std::thread([this] { WatchTermination(); });
  if (threads < MPI_THREAD_MULTIPLE) return absl::FailedPreconditionError("this MPI has no MPI_THREAD_MULTIPLE");
  return absl::OkStatus();
}

MpiSession::~MpiSession() {
  if (watcher_.joinable()) {
    stop_watching_ = true;
    pthread_kill(watcher_.native_handle(), SIGTERM);
    watcher_.join();
    pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
  }
  if (internal::MpiIsAbandoned()) return;
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (!initialized || finalized) return;
  const Status status = internal::MpiStatus(MPI_Finalize(), "MPI_Finalize");
  if (!status.ok()) PrintLine(rank_, std::string(status.message()));
}

void MpiSession::WatchTermination() {
  sigset_t terminations;
  sigemptyset(&terminations);
  sigaddset(&terminations, SIGTERM);
  int signal = 0;
  while (sigwait(&terminations, &signal) != 0) {
  }
  if (stop_watching_) return;
  const std::string trouble = internal::DescribeTrouble();
  if (!aborting_) PrintLine(rank_, trouble.empty() ? "terminated; stopping" : absl::StrCat(trouble, "; stopping"));
  // The other survivors look for gone peers at this moment; this one must not look like one.
  std::this_thread::sleep_for(kTimeToGossip);
  _exit(kTerminatedExitCode);
}

void MpiSession::Abort(int code, std::string_view message) {
  aborting_ = true;
  PrintLine(rank_, message);
  alarm(kAbortSeconds);
  std::this_thread::sleep_for(kTimeToGossip);
  MPI_Abort(MPI_COMM_WORLD, code);
  _exit(code);
}

}  // namespace tessera
