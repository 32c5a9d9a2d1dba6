// `nfold train`: reads the configuration, starts the ranks, trains.
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "nfold/errors.h"
#include "nfold/world.h"
#include "train/commands.h"
#include "train/launch/local_launch.h"
#include "train/rank_threads.h"
#include "train/trainer.h"
#include "train/trainer_config.h"

namespace nfold::train {
namespace {

struct TrainArguments {
  std::string config_path;
  std::vector<std::string> overrides;
  std::string run_dir;
  int num_ranks = 1;
  bool is_overwriting = false;
};

// The first of runs/NAME-1, runs/NAME-2, ... that does not exist.
std::filesystem::path unused_run_dir(const std::string& name) {
  for (int i = 1;; ++i) {
    std::filesystem::path candidate = fmt::format("runs/{}-{}", name, i);
    if (!std::filesystem::exists(candidate)) return candidate;
  }
}

void run_train(const TrainArguments& arguments) {
  // Before any rank starts, so that a wrong file or folder is one message.
  TrainerConfig config =
      TrainerConfig::read(arguments.config_path, arguments.overrides);
  if (!arguments.run_dir.empty() && !is_launched_rank()) {
    check_run_dir(arguments.run_dir, arguments.is_overwriting);
  }
  if (arguments.num_ranks > 1 && !is_launched_rank()) {
    resolve_batch(config.engine,
                  data_parallel_size_of(config.engine, arguments.num_ranks));
    throw CLI::RuntimeError(relaunch_this_command(arguments.num_ranks));
  }
  const World world = World::from_environment();
  divide_cores(world);
  std::filesystem::path run_dir = arguments.run_dir;
  if (world.rank() == 0) {
    if (run_dir.empty()) run_dir = unused_run_dir(config.name);
    check_run_dir(run_dir, arguments.is_overwriting);
    for (const std::string& note : config.engine.notes) {
      fmt::print(stderr, "nfold: note: {}\n", note);
    }
  }
  Trainer(std::move(config), world, run_dir).run();
}

}  // namespace

void add_train_command(CLI::App& app) {
  auto* command =
      app.add_subcommand("train", "Train a language model as CONFIG.json says");
  auto arguments = std::make_shared<TrainArguments>();
  command
      ->add_option("config", arguments->config_path,
                   "Configuration with sections model, data, train, engine")
      ->required()
      ->type_name("CONFIG.json");
  command
      ->add_option("--nproc", arguments->num_ranks,
                   "Processes to start on this machine")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--set", arguments->overrides,
                   "Override keys, such as train.steps=100; may be repeated")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
  command->add_option("--run-dir", arguments->run_dir,
                      "Folder for what the run writes; by default a new one "
                      "below runs/");
  command->add_flag("--overwrite", arguments->is_overwriting,
                    "Replace the run that --run-dir holds");
  command->callback([arguments] { run_train(*arguments); });
}

}  // namespace nfold::train
