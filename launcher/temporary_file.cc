#include "launcher/temporary_file.h"

#include <pthread.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstring>

namespace tessera::launcher {
namespace {

// What the handler may touch: plain memory, written while SIGTERM cannot run it. Empty = nothing to remove.
char path_to_remove[4096];

sigset_t Termination() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  return set;
}

void RemoveAndPassOn(int, siginfo_t*, void* context) {
  if (path_to_remove[0] != '\0') unlink(path_to_remove);
  // The session's watcher waits for this signal. The main thread is served first; it must not take it again.
  sigaddset(&static_cast<ucontext_t*>(context)->uc_sigmask, SIGTERM);
  kill(getpid(), SIGTERM);
}

}  // namespace

TemporaryFile::TemporaryFile(const std::string& path) {
  if (path.size() < sizeof path_to_remove) std::memcpy(path_to_remove, path.c_str(), path.size() + 1);
  struct sigaction action = {};
  action.sa_sigaction = RemoveAndPassOn;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGTERM, &action, &previous_action_);
  const sigset_t termination = Termination();
  pthread_sigmask(SIG_UNBLOCK, &termination, &previous_mask_);
}

TemporaryFile::~TemporaryFile() {
  const sigset_t termination = Termination();
  pthread_sigmask(SIG_BLOCK, &termination, nullptr);
  if (path_to_remove[0] != '\0') unlink(path_to_remove);
  path_to_remove[0] = '\0';
  sigaction(SIGTERM, &previous_action_, nullptr);
  pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
}

void TemporaryFile::Keep() {
  const sigset_t termination = Termination();
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &termination, &before);
  path_to_remove[0] = '\0';
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace tessera::launcher
