// MPI for the lifetime of a main(): initialisation, finalisation, and ends that leave no process behind.
#pragma once

#include <atomic>
#include <csignal>
#include <memory>
#include <string_view>
#include <thread>

#include "runtime/base/status.h"

namespace tessera {

struct MpiSessionOptions {
  // Starts a thread that answers SIGTERM: it prints which peers of this host are gone and the plan step they were last
  // seen in, and ends the process with code 143. mpirun sends SIGTERM to the survivors as soon as one rank dies and
  // SIGKILL a second later, often before any wait has noticed. SIGTERM is blocked in all threads started later, so a
  // session with this option comes before any thread.
  bool watch_termination = false;
};

class MpiSession {
 public:
  static constexpr int kTerminatedExitCode = 143;  // 128 + SIGTERM, as a shell reports it

  // MPI_Init_thread with MPI_THREAD_MULTIPLE. One per process.
  static StatusOr<std::unique_ptr<MpiSession>> Create(int* argc, char*** argv, const MpiSessionOptions& options = {});
  // MPI_Finalize, unless a world was unhealthy when it was destroyed: then finalizing could hang, so main must return
  // non-zero, upon which mpirun ends the job.
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Prints one line and ends every process of the job, stopped ones too. Waits a few heartbeats first, so that the
  // peers learn from this rank whom it has given up on, and do not take its own end for the cause.
  [[noreturn]] void Abort(int code, std::string_view message);

 private:
  MpiSession() = default;
  Status Initialize(int* argc, char*** argv, const MpiSessionOptions& options);
  void WatchTermination();

  int rank_ = 0;
  int size_ = 1;
  sigset_t previous_mask_;
  std::atomic<bool> stop_watching_ = false;
  std::atomic<bool> aborting_ = false;  // the reason is printed already
  std::thread watcher_;
};

}  // namespace tessera
