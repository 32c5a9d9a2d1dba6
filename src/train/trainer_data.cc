#include "train/trainer_data.h"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <string>

#include "nfold/collectives.h"
#include "nfold/errors.h"
#include "train/data/prepare.h"
#include "train/monitor/progress_bar.h"

namespace nfold::train {
namespace {

// The folder to read, or nothing if there is text to prepare.
std::optional<std::filesystem::path> prepared_folder(const DataConfig& data) {
  if (data.path.size() == 1 && is_prepared(data.path[0])) return data.path[0];
  return std::nullopt;
}

void prepare(const DataConfig& data) {
  ProgressBar bar({.label = "prepare"});
  std::string task;
  PrepareOptions options;
  options.inputs = data.path;
  options.extensions = data.extensions;
  options.output = data.prepared;
  options.vocab_size = data.vocab_size;
  options.val_fraction = data.val_fraction;
  options.on_progress = [&](std::string_view what, std::int64_t done,
                            std::int64_t total) {
    if (what != task) {
      task = what;
      bar.restart(task, total);
    }
    bar.update(done);
  };
  const PreparedData prepared = prepare_data(options);
  bar.clear();
  if (!prepared.was_there) {
    fmt::print(stderr,
               "{}: {} files, {} tokens to train on, {} to validate on\n",
               data.prepared, prepared.num_files, prepared.num_train_tokens,
               prepared.num_val_tokens);
  }
}

TokenLoaderOptions loader_options(const TrainerConfig& config) {
  TokenLoaderOptions options;
  options.sequence_length = config.data.sequence_length;
  options.seed = static_cast<std::uint64_t>(config.train.seed);
  options.vocab_size = config.model.vocab_size;
  return options;
}

}  // namespace

TrainerData open_data(TrainerConfig& config, const BatchSizes& batch,
                      const World& world) {
  const std::int64_t micro_batches_rows =
      batch.train_micro_batch_size_per_gpu *
      data_parallel_size_of(config.engine, world.size());
  if (config.data.is_synthetic) {
    TokenLoaderOptions train = loader_options(config);
    train.global_batch = batch.train_batch_size;
    train.num_synthetic_batches = config.data.synthetic_batches;
    return {TokenLoader(train), std::nullopt, std::nullopt};
  }
  auto folder = prepared_folder(config.data);
  // Before rank 0 makes a folder that the others would then find.
  barrier(world.group()).wait();
  if (!folder.has_value()) {
    if (world.rank() == 0) prepare(config.data);
    barrier(world.group()).wait();
    folder = config.data.prepared;
  }
  const PreparedData prepared = open_prepared(*folder);
  std::int64_t& vocab_size = config.model.vocab_size;
  TORCH_CHECK_VALUE(vocab_size == 0 || vocab_size >= prepared.vocab_size,
                    "model.vocab_size: found ", vocab_size, ", but the data ",
                    "in ", folder->string(), " has ", prepared.vocab_size,
                    " tokens; expected at least that many, or no such key.");
  if (vocab_size == 0) vocab_size = prepared.vocab_size;

  TokenLoaderOptions train = loader_options(config);
  train.path = prepared.train_path();
  train.global_batch = batch.train_batch_size;
  TrainerData data{TokenLoader(train), std::nullopt,
                   Tokenizer::load(prepared.tokenizer_path())};
  const bool is_enough = prepared.num_val_tokens >
                         micro_batches_rows * config.data.sequence_length;
  if (config.train.eval_batches > 0 && is_enough) {
    TokenLoaderOptions validation = train;
    validation.path = prepared.val_path();
    validation.global_batch = micro_batches_rows;
    validation.order = DataOrder::kSequential;
    data.validation.emplace(validation);
  } else if (config.train.eval_batches > 0 && world.rank() == 0) {
    fmt::print(stderr,
               "nfold: warning: {} tokens to validate on are fewer than one "
               "batch needs; there will be no validation loss.\n",
               prepared.num_val_tokens);
  }
  return data;
}

}  // namespace nfold::train
