// tessera plan decode: a subcommand of plan.
#pragma once

#include "launcher/command.h"

namespace tessera::launcher {

const CLI::App* AddPlanDecodeCommand(CLI::App& plan, Selection& selection);

}  // namespace tessera::launcher
