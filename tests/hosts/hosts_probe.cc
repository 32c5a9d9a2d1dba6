// A program for tests over several hosts.
//
//   hosts_probe train FOLDER SIZE...   trains at stage 3, and as MiCS with each
//                                      shard size; FOLDER/rank_K gets where
//                                      rank K is, and a line for each training
//                                      with all that came out of it
//   hosts_probe forever SIZE           trains until something fails; prints
//                                      "under way" when it does. SIZE 0 is
//                                      stage 3 without shard groups
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <limits>
#include <string>

#include "base/hash.h"
#include "nfold/nfold.h"
#include "train/launch/error_report.h"
#include "training_run.h"

namespace {

using nfold::testing::RunResult;
using nfold::testing::RunSettings;

RunSettings settings_of(const nfold::World& world, int shard_size) {
  RunSettings settings;
  settings.num_ranks = world.size();
  settings.global_rows = 24;
  settings.num_steps = 3;
  settings.stage = 3;
  settings.more_zero = R"(, "stage3_param_persistence_threshold": 0)";
  if (shard_size > 0) {
    settings.more_zero += fmt::format(R"(, "mics_shard_size": {})", shard_size);
  }
  return settings;
}

// Every bit of it, as text.
std::string text_of(const RunResult& result) {
  std::string text;
  for (const double loss : result.losses) text += fmt::format(" {:a}", loss);
  for (const double norm : result.grad_norms) {
    text += fmt::format(" {:a}", norm);
  }
  nfold::Hasher params;
  for (const auto& param : result.params) params.add_tensor(param);
  return text + " " + nfold::hex_of(params.digest128());
}

void train(nfold::World& world, const std::string& folder, int num_sizes,
           char** sizes) {
  std::ofstream file(fmt::format("{}/rank_{}", folder, world.rank()));
  file << fmt::format("rank {} of {}, local {} of {}, host {}\n", world.rank(),
                      world.size(), world.local_rank(), world.local_size(),
                      world.host());
  file << "stage3" << text_of(run_rank(world, settings_of(world, 0))) << "\n";
  for (int i = 0; i < num_sizes; ++i) {
    const auto settings = settings_of(world, std::atoi(sizes[i]));
    file << "mics" << sizes[i] << text_of(run_rank(world, settings)) << "\n";
  }
}

void train_forever(nfold::World& world, int shard_size) {
  run_rank(world, settings_of(world, shard_size));
  if (world.rank() == 0) {
    fmt::print("under way\n");
    std::fflush(stdout);
  }
  auto settings = settings_of(world, shard_size);
  settings.num_steps = std::numeric_limits<int>::max();
  run_rank(world, settings);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    nfold::World world = nfold::World::from_environment();
    const std::string mode = argc > 2 ? argv[1] : "";
    TORCH_CHECK_VALUE(mode == "train" || mode == "forever",
                      "hosts_probe train FOLDER SIZE..., or forever SIZE");
    if (mode == "train") train(world, argv[2], argc - 3, argv + 3);
    if (mode == "forever") train_forever(world, std::atoi(argv[2]));
  } catch (const std::exception& error) {
    nfold::train::report_error(error);
    return 1;
  }
  return 0;
}
