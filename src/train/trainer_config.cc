#include "train/trainer_config.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

namespace nfold::train {
namespace {

constexpr JsonRange kCount{.least = 0};
constexpr JsonRange kPositive{.least = 1};

DataConfig read_data(JsonObject section, const ModelConfig& model,
                     const Config& engine) {
  DataConfig config;
  section.read("path", config.path);
  section.read("prepared", config.prepared);
  section.read("extensions", config.extensions);
  section.read("vocab_size", config.vocab_size, kPositive);
  section.read("val_fraction", config.val_fraction, {.least = 0, .most = 0.9});
  section.read("synthetic", config.is_synthetic);
  section.read("synthetic_batches", config.synthetic_batches, kCount);
  config.sequence_length = model.max_positions;
  section.read("sequence_length", config.sequence_length, kPositive);
  if (model.max_positions > 0 && config.sequence_length > model.max_positions) {
    section.violation(
        "sequence_length",
        fmt::format("found {}, but the model has {} positions; expected at "
                    "most that many.",
                    config.sequence_length, model.max_positions));
  }
  const std::int64_t num_parts = engine.sequence_parallel_size;
  if (num_parts > 0 && config.sequence_length % num_parts != 0) {
    section.violation(
        "sequence_length",
        fmt::format("found {}, which does not divide by "
                    "engine.sequence_parallel_size {}; change one of them.",
                    config.sequence_length, num_parts));
  }
  if (config.is_synthetic && !config.path.empty()) {
    section.violation("synthetic",
                      "found true beside \"path\"; expected one of them.");
  }
  if (config.synthetic_batches > 0 && !config.is_synthetic) {
    section.violation("synthetic_batches",
                      "only synthetic tokens repeat; give \"synthetic\": true, "
                      "or leave it out.");
  }
  if (config.is_synthetic && model.vocab_size == 0) {
    section.violation("synthetic",
                      "synthetic data needs model.vocab_size, which is not "
                      "given.");
  }
  if (!config.is_synthetic && config.path.empty()) {
    section.violation("path",
                      "missing; expected a prepared folder, text files or "
                      "folders, or \"python-stdlib\"; or give \"synthetic\": "
                      "true.");
  }
  section.finish();
  return config;
}

// `engine` gets what train.dtype asks for.
TrainConfig read_train(JsonObject section, Config& engine) {
  TrainConfig config;
  section.read("steps", config.steps, kPositive);
  section.read("seed", config.seed, kCount);
  section.read("eval_interval", config.eval_interval, kCount);
  section.read("eval_batches", config.eval_batches, kCount);
  section.read("save_interval", config.save_interval, kCount);
  section.read("save", config.is_saving);
  section.read("weights", config.weights);
  section.read("sample_prompt", config.sample_prompt);
  section.read("sample_tokens", config.sample_tokens, kCount);
  constexpr std::string_view kDtypes[] = {"fp32", "bf16", "fp16"};
  if (const auto dtype = section.read_choice("dtype", kDtypes)) {
    const bool is_bf16 = kDtypes[*dtype] == "bf16";
    const bool is_fp16 = kDtypes[*dtype] == "fp16";
    if ((engine.bf16.enabled && !is_bf16) ||
        (engine.fp16.enabled && !is_fp16)) {
      section.violation(
          "dtype",
          fmt::format("found \"{}\", but engine.{}.enabled is true; "
                      "leave one of them out.",
                      kDtypes[*dtype], engine.bf16.enabled ? "bf16" : "fp16"));
    }
    engine.bf16.enabled = is_bf16;
    engine.fp16.enabled = is_fp16;
  }
  section.finish();
  return config;
}

void check_experts(const ModelConfig& model, const Config& engine) {
  const std::int64_t size = engine.expert_parallel_size;
  TORCH_CHECK_VALUE(
      size == 1 || model.num_experts > 0, "engine.expert_parallel_size: found ",
      size, ", but the model has no experts; set model.num_local_experts");
  TORCH_CHECK_VALUE(model.num_experts % size == 0,
                    "engine.expert_parallel_size: the ", model.num_experts,
                    " experts of model.num_local_experts do not divide over ",
                    size, " ranks");
}

void check_weights(const TrainConfig& train, const Config& engine) {
  const bool is_split =
      engine.tensor_parallel_size > 1 || engine.expert_parallel_size > 1;
  TORCH_CHECK_NOT_IMPLEMENTED(
      train.weights.empty() || !is_split, "train.weights: found \"",
      train.weights,
      "\" beside layers or experts that ranks share out, which a file of the "
      "whole model cannot fill yet; expected engine.tensor_parallel_size and "
      "engine.expert_parallel_size 1.");
  TORCH_CHECK_VALUE(
      train.weights.empty() || std::filesystem::is_regular_file(train.weights),
      "train.weights: there is no file \"", train.weights,
      "\"; expected one that save_safetensors wrote, such as model.safetensors "
      "of a run directory.");
}

}  // namespace

TrainerConfig TrainerConfig::read(const std::string& path,
                                  const std::vector<std::string>& overrides) {
  auto document = JsonDocument::from_file(path);
  for (const std::string& assignment : overrides) document.set(assignment);
  JsonObject root = document.root();
  root.require("model");
  root.require("engine");
  TrainerConfig config;
  config.name = std::filesystem::path(path).stem().string();
  config.model = ModelConfig::read(root.object("model"));
  config.engine = Config::from_json_object(root.object("engine"));
  config.data = read_data(root.object("data"), config.model, config.engine);
  config.train = read_train(root.object("train"), config.engine);
  root.finish();
  document.raise_if_violated();
  config.engine.validate();
  check_experts(config.model, config.engine);
  check_weights(config.train, config.engine);
  if (config.data.prepared.empty()) {
    config.data.prepared = "data/" + config.name;
  }
  if (config.data.vocab_size == 0) {
    config.data.vocab_size =
        config.model.vocab_size > 0 ? config.model.vocab_size : 8192;
  }
  return config;
}

std::string TrainerConfig::to_json_text() const {
  nlohmann::ordered_json json;
  using Json = nlohmann::ordered_json;
  json["model"] = Json::parse(model.to_json_text());
  auto& data_json = json["data"] = Json::object();
  if (data.is_synthetic) {
    data_json["synthetic"] = true;
    data_json["synthetic_batches"] = data.synthetic_batches;
  } else {
    data_json["path"] = data.path;
    data_json["prepared"] = data.prepared;
    data_json["extensions"] = data.extensions;
    data_json["val_fraction"] = data.val_fraction;
  }
  data_json["vocab_size"] = data.vocab_size;
  data_json["sequence_length"] = data.sequence_length;
  json["train"] = {{"steps", train.steps},
                   {"seed", train.seed},
                   {"eval_interval", train.eval_interval},
                   {"eval_batches", train.eval_batches},
                   {"save_interval", train.save_interval},
                   {"save", train.is_saving},
                   {"weights", train.weights},
                   {"sample_prompt", train.sample_prompt},
                   {"sample_tokens", train.sample_tokens}};
  json["engine"] = Json::parse(engine.to_json_text());
  return json.dump(2) + "\n";
}

}  // namespace nfold::train
