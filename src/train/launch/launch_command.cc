#include <memory>

#include "train/commands.h"
#include "train/launch/local_launch.h"

namespace nfold::train {

void add_launch_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "launch", "Run any program that uses World::from_environment as N ranks");
  auto options = std::make_shared<LaunchOptions>();
  JobShape& shape = options->shape;
  command
      ->add_option("-n,--nproc,--nproc-per-node", shape.ranks_per_host,
                   "Number of ranks on this host")
      ->required()
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--nnodes", shape.num_hosts,
                   "Number of hosts; each runs its own nfold launch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--node-rank", shape.host_number,
                   "This host's number, 0 to NNODES - 1")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--master-addr", shape.master_addr,
                      "Address of the host with number 0, where the ranks "
                      "meet (default on one host: 127.0.0.1)");
  command
      ->add_option("--port,--master-port", shape.master_port,
                   "Port at which the ranks meet (default: a free one; 29500 "
                   "on several hosts)")
      ->check(CLI::Range(1, 65535));
  command->add_option("--log-dir", options->log_dir,
                      "Folder for rank_K.log, what rank K > 0 prints");
  command->add_option("program", options->command, "Program and its arguments")
      ->required();
  command->footer(
      "Rank 0 keeps the terminal. If a rank fails, the others are ended and "
      "its error is shown. What stands after -- is the "
      "program's.\n\nExamples:\n  nfold launch --nproc 4 -- "
      "./my_trainer --steps 100\n  nfold launch --nnodes 2 --node-rank 0 "
      "--master-addr node0 --nproc 4 -- ./my_trainer\n  nfold launch --nnodes "
      "2 --node-rank 1 --master-addr node0 --nproc 4 -- ./my_trainer\nThe "
      "last two are one job: each on its host, in any order.");
  command->callback([options] {
    const int exit_code = launch_local_ranks(*options);
    if (exit_code != 0) throw CLI::RuntimeError(exit_code);
  });
}

}  // namespace nfold::train
