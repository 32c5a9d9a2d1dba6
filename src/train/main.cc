#include <fmt/format.h>
#include <torch/version.h>

#include <cstdlib>
#include <exception>
#include <string>

#include "train/commands.h"
#include "train/data/data_command.h"
#include "train/launch/error_report.h"

namespace {

constexpr int kUsageError = 2;

constexpr char kExamples[] =
    "Examples:\n"
    "  nfold train examples/train.json --nproc 2   train a model\n"
    "  nfold generate --run-dir runs/train-1       let it write\n"
    "  nfold doctor                                what this machine offers\n"
    "  nfold bench collectives --nproc 2           and how fast it is\n"
    "  nfold launch --nproc 4 -- ./my_trainer      run a program as 4 ranks\n"
    "\n"
    "Exit code: 0 when the work is done, 1 on an error, 2 on wrong use.";

}  // namespace

int main(int argc, char** argv) {
  // libtorch then asks for huge pages for large tensors: a training step
  // allocates gigabytes, and most of the kernel's time goes to 4 KiB faults.
  // Read once, at the first allocation; a value the user set stays.
  setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0);
  CLI::App app("Sharded training on libtorch", "nfold");
  app.set_version_flag("--version", fmt::format("nfold {} (torch {})",
                                                NFOLD_VERSION, TORCH_VERSION));
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format(
        "nfold: error: {}\nnfold --help, or nfold COMMAND --help, shows how.\n",
        error.what());
  });
  app.footer(kExamples);
  nfold::train::add_train_command(app);
  nfold::train::add_generate_command(app);
  nfold::train::add_data_command(app);
  nfold::train::add_launch_command(app);
  nfold::train::add_doctor_command(app);
  nfold::train::add_mesh_command(app);
  nfold::train::add_bench_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();
  } catch (const CLI::Success& request) {
    return app.exit(request);
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return kUsageError;
  } catch (const std::exception& error) {
    nfold::train::report_error(error);
    return 1;
  }
  return 0;
}
