// A file that is renamed when it is complete and must not be left behind when it never will be.
#pragma once

#include <csignal>
#include <string>

namespace tessera::launcher {

// While it exists, SIGTERM, by which mpirun ends the survivors of a failed job, removes the file before it ends the
// process as it would without this. On the main thread, one at a time. Every rank that knows of a shared file has one,
// so that the file is removed although the rank that created it was killed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path);
  ~TemporaryFile();  // removes the file unless it was kept
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void Keep();  // it was renamed, or the rank that renames it now owns it alone

 private:
  struct sigaction previous_action_ = {};
  sigset_t previous_mask_;
};

}  // namespace tessera::launcher
