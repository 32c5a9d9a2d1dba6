// `nfold generate`: text from the weights of a run directory.
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "nfold/checkpoint.h"
#include "nfold/errors.h"
#include "nfold/strict_json.h"
#include "train/commands.h"
#include "train/generate.h"

namespace nfold::train {
namespace {

struct GenerateArguments {
  std::string run_dir;
  std::string prompt;
  GenerateOptions options;
};

void run_generate(GenerateArguments arguments) {
  const std::filesystem::path folder = arguments.run_dir;
  NFOLD_CHECK_IO(std::filesystem::exists(folder / "model.safetensors"),
                 folder.string(),
                 ": holds no model.safetensors; --run-dir expects the folder "
                 "of a finished `nfold train`.");
  auto document = JsonDocument::from_file((folder / "config.json").string());
  const ModelConfig config = ModelConfig::read(document.root());
  document.raise_if_violated();
  const Tokenizer tokenizer = Tokenizer::load(folder / "tokenizer.json");
  NFOLD_CHECK_IO(tokenizer.vocab_size() <= config.vocab_size, folder.string(),
                 ": tokenizer.json has ", tokenizer.vocab_size(),
                 " tokens, but the model only ", config.vocab_size, ".");
  const auto model = make_model(config);
  load_weights(*model, (folder / "model.safetensors").string());
  arguments.options.max_positions = config.max_positions;
  const std::string text =
      generate(*model, tokenizer, arguments.prompt, arguments.options);
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto* command = app.add_subcommand(
      "generate", "Continue a text with a model that was trained");
  auto arguments = std::make_shared<GenerateArguments>();
  command->add_option("--run-dir", arguments->run_dir, "Folder of the run")
      ->required();
  command->add_option("--prompt", arguments->prompt, "Text to continue");
  command
      ->add_option("--max-tokens", arguments->options.max_tokens,
                   "Tokens to write at most")
      ->capture_default_str();
  command
      ->add_option("--temperature", arguments->options.temperature,
                   "0: always the likeliest token")
      ->capture_default_str();
  command
      ->add_option("--top-k", arguments->options.top_k,
                   "Draw from the k likeliest tokens only; 0: from all")
      ->capture_default_str();
  command->add_option("--seed", arguments->options.seed, "Of the draws")
      ->capture_default_str();
  command->callback([arguments] { run_generate(*arguments); });
}

}  // namespace nfold::train
