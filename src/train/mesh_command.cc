// `nfold mesh`: the process groups of a configuration, before a job is started.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "train/commands.h"
#include "train/mesh_table.h"
#include "train/trainer_config.h"

namespace nfold::train {
namespace {

struct MeshArguments {
  std::string config_path;
  std::vector<std::string> overrides;
  MeshTableOptions table;
};

}  // namespace

void add_mesh_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "mesh", "Show the process groups that CONFIG.json asks for");
  auto arguments = std::make_shared<MeshArguments>();
  command
      ->add_option("config", arguments->config_path,
                   "Configuration as for nfold train")
      ->required()
      ->type_name("CONFIG.json");
  command->add_option("--ranks", arguments->table.num_ranks, "Ranks of the job")
      ->required()
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--ranks-per-node", arguments->table.ranks_per_node,
                   "Ranks on each machine; by default all are on one")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--set", arguments->overrides,
                   "Override keys, such as engine.tensor_parallel_size=2; may "
                   "be repeated")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  command->callback([arguments] {
    const auto config =
        TrainerConfig::read(arguments->config_path, arguments->overrides);
    fmt::print("{}", format_mesh(config.engine, arguments->table));
  });
}

}  // namespace nfold::train
