// A directory that appears complete or not at all.
#pragma once

#include <csignal>
#include <string>

#include "runtime/base/status.h"

namespace tessera::launcher {

// Files go to path(), a directory beside the target, which Commit renames. Until then the target is untouched, and
// without a Commit the destructor removes what was staged. SIGINT and SIGTERM are held back while it exists:
// Interrupted() tells of one, and the process takes it when the staging is gone. On the main thread, one at a time.
class StagedDirectory {
 public:
  // InvalidArgument when the target exists and may not be replaced, or is not a directory; PermissionDenied when its
  // parent is missing or not writable.
  static Status CheckTarget(const std::string& target, bool replace);

  StagedDirectory();
  ~StagedDirectory();
  StagedDirectory(const StagedDirectory&) = delete;
  StagedDirectory& operator=(const StagedDirectory&) = delete;

  Status Create(const std::string& target);
  const std::string& path() const { return path_; }
  // Cancelled after SIGINT or SIGTERM.
  static Status Interrupted();
  // Flushes the directory and renames it to the target; an existing target, if it may be replaced, is removed after.
  Status Commit(bool replace);

 private:
  std::string target_;
  std::string path_;  // empty when there is nothing to remove
  struct sigaction interrupt_ = {}, terminate_ = {};
};

}  // namespace tessera::launcher
