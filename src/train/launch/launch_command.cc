#include <memory>

#include "train/commands.h"
#include "train/launch/local_launch.h"

namespace nfold::train {

void add_launch_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "launch", "Run any program that uses World::from_environment as N ranks");
  auto options = std::make_shared<LaunchOptions>();
  command->add_option("-n,--nproc", options->num_ranks, "Number of ranks")
      ->required()
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--port", options->port,
                   "Port at which the ranks meet (default: a free one)")
      ->check(CLI::Range(1, 65535));
  command->add_option("--log-dir", options->log_dir,
                      "Folder for rank_K.log, what rank K > 0 prints");
  command->add_option("program", options->command, "Program and its arguments")
      ->required();
  command->footer(
      "Rank 0 keeps the terminal. If a rank fails, the others are ended and "
      "its error is shown. What stands after -- is the "
      "program's.\n\nExample:\n  nfold launch --nproc 4 -- "
      "./my_trainer --steps 100");
  command->callback([options] {
    const int exit_code = launch_local_ranks(*options);
    if (exit_code != 0) throw CLI::RuntimeError(exit_code);
  });
}

}  // namespace nfold::train
