// The flags that describe a machine to plan for.
#pragma once

#include <CLI/CLI.hpp>

#include "partition/cost.h"

namespace tessera::launcher {

inline constexpr int kMaxRanks = 65536;

void AddMachineFlags(CLI::App& command, MachineModel& machine);

}  // namespace tessera::launcher
