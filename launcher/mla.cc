// tessera mla: work on checkpoints of models with latent attention.
#include "launcher/mla_command.h"

namespace tessera::launcher {

void AddMlaCommand(CLI::App& app, Selection& selection) {
  CLI::App* command = app.add_subcommand("mla", "convert and inspect checkpoints with latent attention");
  command->require_subcommand(1);
  AddMlaConvertCommand(*command, selection);
  AddMlaInspectCommand(*command, selection);
}

}  // namespace tessera::launcher
