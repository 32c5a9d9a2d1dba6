#include "train/data/data_command.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "train/data/prepare.h"
#include "train/data/token_file.h"
#include "train/monitor/progress_bar.h"
#include "train/monitor/quantity.h"
#include "train/monitor/text_table.h"

namespace nfold::train {
namespace {

void print_result(const PreparedData& data) {
  if (data.was_there) {
    fmt::print("{} is up to date.\n\n", data.folder.string());
  }
  const double num_tokens =
      static_cast<double>(data.num_train_tokens + data.num_val_tokens);
  TextTable table({"prepared data", data.folder.string()});
  table.add_row({"files", std::to_string(data.num_files)});
  table.add_row({"text", bytes_text(data.text_bytes)});
  table.add_row({"vocabulary", std::to_string(data.vocab_size)});
  table.add_row({"training tokens", std::to_string(data.num_train_tokens)});
  table.add_row({"validation tokens", std::to_string(data.num_val_tokens)});
  table.add_row({"bytes per token",
                 fmt::format("{:.2f}", static_cast<double>(data.text_bytes) /
                                           num_tokens)});
  table.add_row({"corpus hash", data.corpus_hash});
  fmt::print("{}", table.text());
}

void run_prepare(PrepareOptions options) {
  ProgressBar bar({});
  std::string current;
  options.on_progress = [&](std::string_view what, std::int64_t done,
                            std::int64_t total) {
    if (what != current) {
      current = what;
      bar.restart(fmt::format("{:<25}", what), total);
    }
    bar.update(done);
  };
  const PreparedData data = prepare_data(options);
  bar.clear();
  print_result(data);
}

}  // namespace

void add_data_command(CLI::App& app) {
  CLI::App* data = app.add_subcommand("data", "Make training data from text");
  data->require_subcommand(1);
  CLI::App* prepare = data->add_subcommand(
      "prepare", "Text files to a tokenizer and files of tokens");
  // Lives as long as the command that fills it in.
  auto options = std::make_shared<PrepareOptions>();
  auto output = std::make_shared<std::string>();
  auto tokenizer = std::make_shared<std::string>();
  prepare
      ->add_option("--input", options->inputs,
                   "Files and folders; python-stdlib: the sources of "
                   "python3's standard library")
      ->required()
      ->type_name("PATH...");
  prepare
      ->add_option("--output", *output,
                   "Folder to make; it must be new, empty or hold the same "
                   "result")
      ->required()
      ->type_name("DIR");
  prepare
      ->add_option("--vocab-size", options->vocab_size,
                   "Tokens to learn, 257 to 65536")
      ->capture_default_str();
  prepare
      ->add_option("--val-fraction", options->val_fraction,
                   "Part of the text to keep for validation")
      ->capture_default_str();
  prepare
      ->add_option("--tokenizer", *tokenizer,
                   "A tokenizer.json to use instead of learning one")
      ->type_name("FILE");
  prepare
      ->add_option("--extension", options->extensions,
                   "Take only files that end so from folders, such as .py")
      ->type_name("TEXT...");
  prepare->callback([options, output, tokenizer] {
    options->output = *output;
    options->tokenizer = *tokenizer;
    run_prepare(*options);
  });
}

}  // namespace nfold::train
