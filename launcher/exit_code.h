// Exit codes of the tessera program. They are part of its interface: scripts and batch systems act on them.
#pragma once

#include "runtime/base/status.h"

namespace tessera::launcher {

enum class ExitCode : int {
  kOk = 0,           // done, and every check that ran passed
  kCheckFailed = 1,  // a result was wrong: error too large, bytes not as predicted, implausible speed
  kUsage = 2,        // unknown or contradictory flags
  kBadInput = 3,     // a file, tensor, shape, mask or environment variable is not acceptable
  kRefused = 4,      // the request is well formed but cannot be served here, or ranks disagree
  kPeerLost = 5,     // a rank died, stalled, or communication failed
  kSystem = 6,       // no memory, no space, no permission
  kInternal = 7,     // a defect in Tessera
};

// The code that reports `status`.
ExitCode ExitCodeOf(const Status& status);

// The table above as text, for --help.
const char* ExitCodeHelp();

}  // namespace tessera::launcher
