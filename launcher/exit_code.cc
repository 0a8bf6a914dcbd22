#include "launcher/exit_code.h"

namespace tessera::launcher {

ExitCode ExitCodeOf(const Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return ExitCode::kOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kOutOfRange:
      return ExitCode::kBadInput;
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kFailedPrecondition:
      return ExitCode::kRefused;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return ExitCode::kPeerLost;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kAlreadyExists:
      return ExitCode::kSystem;
    default:
      return ExitCode::kInternal;
  }
}

const char* ExitCodeHelp() {
  return "Exit codes: 0 done and correct; 1 a check failed; 2 usage; 3 bad input; 4 cannot be served here, or ranks\n"
         "disagree; 5 a rank died or stalled; 6 no memory, space or permission; 7 a defect in Tessera.";
}

}  // namespace tessera::launcher
