// `nfold bench`: what kernels and collectives reach on this machine.
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/collectives_bench.h"
#include "bench/optimizer_bench.h"
#include "nfold/world.h"
#include "train/bench_table.h"
#include "train/commands.h"
#include "train/launch/local_launch.h"
#include "train/rank_threads.h"

namespace nfold::train {
namespace {

struct OptimizerArguments {
  bench::OptimizerBenchOptions options;
  int num_threads = 0;
  bool is_json = false;
};

struct CollectivesArguments {
  bench::CollectivesBenchOptions options;
  int num_ranks = 2;
  int num_threads = 0;
  bool is_json = false;
};

void run_optimizer(const OptimizerArguments& arguments) {
  if (arguments.num_threads > 0) at::set_num_threads(arguments.num_threads);
  const bench::OptimizerBench made = bench::bench_optimizer(arguments.options);
  fmt::print("{}", arguments.is_json ? bench_json(made) : format_bench(made));
}

void run_collectives(const CollectivesArguments& arguments) {
  if (arguments.num_ranks > 1 && !is_launched_rank()) {
    throw CLI::RuntimeError(relaunch_this_command(arguments.num_ranks));
  }
  const World world = World::from_environment();
  if (arguments.num_threads > 0) {
    at::set_num_threads(arguments.num_threads);
  } else {
    divide_cores(world);
  }
  const auto rows = bench::bench_collectives(world, arguments.options);
  if (world.rank() != 0) return;
  const CollectivesAbout about{.num_ranks = world.size(),
                               .num_threads = at::get_num_threads(),
                               .num_rounds = arguments.options.num_rounds};
  fmt::print("{}", arguments.is_json ? bench_json(rows, about)
                                     : format_bench(rows, about));
}

// What both benchmarks take.
void add_bench_options(CLI::App* command, int* num_rounds, int* num_threads,
                       bool* is_json) {
  command
      ->add_option("--rounds", *num_rounds,
                   "Times that everything is measured, turn by turn")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--threads", *num_threads,
                   "Of a process; by default OMP_NUM_THREADS, or its part of "
                   "the cores")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", *is_json, "Print JSON instead of a table");
}

void add_optimizer_bench(CLI::App* bench) {
  CLI::App* command = bench->add_subcommand(
      "optimizer",
      "Optimizer steps, norms, sums and casts, beside plain loops "
      "over as many arrays and torch's fused AdamW");
  auto arguments = std::make_shared<OptimizerArguments>();
  command
      ->add_option("--numel", arguments->options.numel,
                   "Elements; they take 20 bytes of memory each")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_bench_options(command, &arguments->options.num_rounds,
                    &arguments->num_threads, &arguments->is_json);
  command->footer(
      "Bytes are those that must be read and written at least. NFOLD_SIMD "
      "chooses the instruction set.\n\nExamples:\n"
      "  nfold bench optimizer --threads 2\n"
      "  nfold bench optimizer --numel 10000000 --json > optimizer.json");
  command->callback([arguments] { run_optimizer(*arguments); });
}

void add_collectives_bench(CLI::App* bench) {
  CLI::App* command = bench->add_subcommand(
      "collectives",
      "Collectives between the ranks of this machine, beside a "
      "copy of as many bytes");
  auto arguments = std::make_shared<CollectivesArguments>();
  command
      ->add_option("--nproc", arguments->num_ranks,
                   "Ranks to start on this machine")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      ->add_option("--sizes", arguments->options.sizes,
                   "Of the full tensor, such as 64K 1M; by default 64K to 64M")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  add_bench_options(command, &arguments->options.num_rounds,
                    &arguments->num_threads, &arguments->is_json);
  command->footer(
      "A time is that of the slowest rank. Started by nfold launch, torchrun "
      "or another launcher it takes that one's ranks.\n\nExamples:\n"
      "  nfold bench collectives --nproc 4\n"
      "  nfold bench collectives --sizes 64K 1M --rounds 15 --json");
  command->callback([arguments] { run_collectives(*arguments); });
}

}  // namespace

void add_bench_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "bench", "Measure kernels or collectives on this machine");
  command->require_subcommand(1);
  add_optimizer_bench(command);
  add_collectives_bench(command);
}

}  // namespace nfold::train
