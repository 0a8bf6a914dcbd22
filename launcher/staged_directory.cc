#include "launcher/staged_directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

namespace tessera::launcher {
namespace {

namespace fs = std::filesystem;

volatile std::sig_atomic_t caught_signal = 0;

void Remember(int signal) {
  caught_signal = signal;
}

fs::path ParentOf(const std::string& target) {
  const fs::path parent = fs::path(target).parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

// "a/b/" names the same directory as "a/b", but not the same sibling.
std::string WithoutSlashes(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

void Flush(const fs::path& directory) {
  const int file = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return;  // a file system that cannot open a directory has nothing to flush
  fsync(file);
  close(file);
}

}  // namespace

Status StagedDirectory::CheckTarget(const std::string& given, bool replace) {
  const std::string target = WithoutSlashes(given);
  std::error_code ignored;
  const fs::file_status status = fs::symlink_status(target, ignored);
  if (fs::exists(status) && !fs::is_directory(status)) {
    return absl::InvalidArgumentError(absl::StrCat(target, " exists and is not a directory"));
  }
  if (fs::exists(status) && !replace) {
    return absl::InvalidArgumentError(absl::StrCat(target, " exists; give --force to replace it"));
  }
  const fs::path parent = ParentOf(target);
  if (access(parent.c_str(), W_OK | X_OK) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot write ", target, ": directory ", parent.string(), " does not exist or is not writable"));
  }
  return absl::OkStatus();
}

StagedDirectory::StagedDirectory() {
  caught_signal = 0;
  struct sigaction action = {};
  action.sa_handler = Remember;
  sigaction(SIGINT, &action, &interrupt_);
  sigaction(SIGTERM, &action, &terminate_);
  // Whoever started this in the background had signals ignored for it.
  if (interrupt_.sa_handler == SIG_IGN) sigaction(SIGINT, &interrupt_, nullptr);
  if (terminate_.sa_handler == SIG_IGN) sigaction(SIGTERM, &terminate_, nullptr);
}

StagedDirectory::~StagedDirectory() {
  std::error_code ignored;
  if (!path_.empty()) fs::remove_all(path_, ignored);
  sigaction(SIGINT, &interrupt_, nullptr);
  sigaction(SIGTERM, &terminate_, nullptr);
  if (caught_signal != 0) raise(caught_signal);
}

Status StagedDirectory::Create(const std::string& target) {
  target_ = WithoutSlashes(target);
  const std::string path = absl::StrCat(target_, ".tmp-", getpid());
  if (mkdir(path.c_str(), 0777) != 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot create ", path));
  path_ = path;
  return absl::OkStatus();
}

Status StagedDirectory::Interrupted() {
  if (caught_signal == 0) return absl::OkStatus();
  return absl::CancelledError(absl::StrCat("interrupted by signal ", int{caught_signal}, "; nothing was written"));
}

Status StagedDirectory::Commit(bool replace) {
  TESSERA_RETURN_IF_ERROR(Interrupted());
  Flush(path_);
  const auto failed = [&] {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot rename ", path_, " to ", target_));
  };
  std::error_code ignored;
  if (fs::exists(target_, ignored)) {
    if (!replace) return absl::InvalidArgumentError(absl::StrCat(target_, " exists; give --force to replace it"));
    // Exchanging leaves no moment without a target. Where the file system cannot, the old one steps aside first.
    if (renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0) {
      const std::string old = absl::StrCat(path_, "-old");
      if (std::rename(target_.c_str(), old.c_str()) != 0) return failed();
      if (std::rename(path_.c_str(), target_.c_str()) != 0) {
        const Status status = failed();
        if (std::rename(old.c_str(), target_.c_str()) == 0) return status;
        return absl::InternalError(absl::StrCat(std::string(status.message()), "; the earlier directory is at ", old));
      }
      path_ = old;
    }
    fs::remove_all(path_, ignored);  // the earlier directory
  } else if (std::rename(path_.c_str(), target_.c_str()) != 0) {
    return failed();
  }
  path_.clear();
  Flush(ParentOf(target_));
  return absl::OkStatus();
}

}  // namespace tessera::launcher
