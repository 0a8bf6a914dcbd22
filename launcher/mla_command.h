// The subcommands of `tessera mla`.
#pragma once

#include "launcher/command.h"

namespace tessera::launcher {

void AddMlaConvertCommand(CLI::App& mla, Selection& selection);
void AddMlaInspectCommand(CLI::App& mla, Selection& selection);

}  // namespace tessera::launcher
