// What holds for every key: the table, notes, errors and the effective text.
#include "nfold/config.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>

#include "config/config_key.h"
#include "config/config_test_text.h"
#include "nfold/errors.h"
#include "nfold/strict_json.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using Json = nlohmann::ordered_json;

// A text with one key, nested as its path says.
std::string text_with(std::string_view path, const Json& value) {
  Json node = value;
  std::string rest(path);
  while (!rest.empty()) {
    const std::size_t dot = rest.rfind('.');
    Json outer = Json::object();
    outer[rest.substr(dot == std::string::npos ? 0 : dot + 1)] = node;
    node = outer;
    rest = dot == std::string::npos ? "" : rest.substr(0, dot);
  }
  return node.dump();
}

TEST(ConfigAuto, IsTakenAsTheDefaultAndNoted) {
  const Config config = read(R"({"train_batch_size": "auto",
      "train_micro_batch_size_per_gpu": 4, "gradient_clipping": "auto",
      "bf16": {"enabled": "auto"},
      "optimizer": {"type": "AdamW", "params": {"lr": "auto",
                    "betas": "auto"}},
      "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}},
      "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}})");
  EXPECT_FALSE(config.train_batch_size.has_value());
  EXPECT_EQ(config.gradient_clipping, 1.0);
  EXPECT_FALSE(config.bf16.enabled);
  EXPECT_EQ(config.optimizer->params.lr, 1e-3);
  EXPECT_EQ(config.zero_optimization.reduce_bucket_size, 500'000'000);
  EXPECT_THAT(config.notes, SizeIs(7));
  EXPECT_THAT(config.notes,
              Contains("optimizer.params.lr: \"auto\" is taken as the "
                       "default"));
  EXPECT_THAT(error_of(R"({"scheduler": {"type": "WarmupDecayLR",
                           "params": {"total_num_steps": "auto"}}})"),
              HasSubstr("total_num_steps: is required"));
}

// The shape of the files that go around with trainers built on DeepSpeed.
TEST(ConfigAuto, ATypicalTrainersFileIsRead) {
  const Config config = read(R"({
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000,
             "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1},
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto",
                  "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto",
                  "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {"stage": 2,
      "offload_optimizer": {"device": "none", "pin_memory": true},
      "allgather_partitions": true, "allgather_bucket_size": 2e8,
      "overlap_comm": true, "reduce_scatter": true,
      "reduce_bucket_size": 2e8, "contiguous_gradients": true},
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
    "steps_per_print": 2000, "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": false})");
  EXPECT_EQ(config.zero_optimization.stage, 2);
  EXPECT_EQ(config.zero_optimization.reduce_bucket_size, 200'000'000);
  EXPECT_EQ(config.zero_optimization.overlap_comm, true);
  EXPECT_EQ(config.param_dtype(), at::kFloat);
  EXPECT_EQ(config.optimizer->type, OptimizerType::kAdamW);
}

TEST(ConfigErrors, AreReportedAllAtOnce) {
  EXPECT_EQ(
      error_of(R"({"fp16": {"enabled": "true"}, "bf16": {"enabld": true},
                   "zero_optimization": {"stage": 4, "overlap_com": true,
                                         "legacy_stage1": true},
                   "steps_per_print": 0, "train_batch_sze": 3})"),
      "configuration: 7 problems\n"
      "  steps_per_print: expected an integer of at least 1 but found 0\n"
      "  fp16.enabled: expected true or false but found the text \"true\"; "
      "remove the quotes\n"
      "  zero_optimization.stage: expected an integer from 0 to 3 but found 4\n"
      "  train_batch_sze: unknown key; did you mean train_batch_size?\n"
      "  bf16.enabld: unknown key; did you mean enabled?\n"
      "  zero_optimization.overlap_com: unknown key; did you mean "
      "overlap_comm?\n"
      "  zero_optimization.legacy_stage1: the old stage 1 does not exist; use "
      "false with stage 1");
}

// The typed sections that a path runs through, so that only the misspelt key
// is wrong.
std::string text_for(const ConfigKey& key, std::string_view path,
                     const Json& value) {
  Json root = Json::parse(text_with(path, value));
  const auto first_type = [&](auto type, std::string_view section) {
    const auto names = names_of(type);
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (!(key.owners & (1U << i))) continue;
      root[std::string(section)]["type"] = std::string(names[i]);
      return;
    }
  };
  if (path.starts_with("optimizer.")) {
    first_type(OptimizerType{}, "optimizer");
  } else if (path.starts_with("scheduler.")) {
    first_type(SchedulerType{}, "scheduler");
  }
  return root.dump();
}

TEST(ConfigKeys, EveryKeyMisspeltByOneLetterIsNamed) {
  for (const ConfigKey& key : config_keys()) {
    std::string leaf(leaf_of(key.path));
    if (leaf == "type" || leaf == "$schema") continue;
    leaf[leaf.size() / 2] = 'Q';
    std::string path(section_of(key.path));
    path += path.empty() ? leaf : "." + leaf;
    const std::string error = error_of(text_for(key, path, 1));
    EXPECT_THAT(error, HasSubstr(path + ": unknown key; did you mean "));
    EXPECT_THAT(error, HasSubstr(std::string(leaf_of(key.path))));
  }
}

TEST(ConfigKeys, EveryPathIsUniqueAndDescribed) {
  std::set<std::string_view> paths;
  for (const ConfigKey& key : config_keys()) {
    EXPECT_TRUE(paths.insert(key.path).second) << key.path;
    EXPECT_THAT(key.effect, Not(IsEmpty())) << key.path;
    EXPECT_FALSE(key.effect.ends_with(".")) << key.path;
  }
  for (const Unavailable& row : unavailable_keys()) {
    EXPECT_TRUE(paths.contains(row.path)) << row.path;
    EXPECT_THAT(row.text, HasSubstr("; ")) << row.path;
  }
  for (const KeyAlias& alias : key_aliases()) {
    EXPECT_TRUE(paths.contains(alias.path)) << alias.path;
  }
}

// A value that differs from the default and fits, for fields of every kind.
std::optional<Json> other_value(const Config& config, const ConfigKey& key) {
  const Json value = Json::parse(value_text(config, key));
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number_float()) {
    const double half = value.get<double>() / 2 + 0.125;
    return key.range.holds(half) ? std::optional<Json>(half) : std::nullopt;
  }
  if (value.is_number()) {
    for (const std::int64_t change : {1, -1}) {
      const double other = value.get<double>() + static_cast<double>(change);
      if (std::abs(other) < 1e15 && key.range.holds(other)) {
        return value.get<std::int64_t>() + change;
      }
    }
    return 5;
  }
  if (value.is_array() && value.empty()) return Json::array({"x"});
  if (value.is_array()) return Json::array({0.25, 0.5});
  const std::string type = type_text(key);
  if (type == "text") return "other";
  if (type == "fp32, fp16 or bf16") return "bf16";
  if (value.is_null()) return 5;
  return std::nullopt;  // choices, which have tests of their own
}

TEST(ConfigKeys, EveryKeyIsStoredAndComesBackFromTheEffectiveText) {
  int num_read = 0;
  for (const ConfigKey& key : config_keys()) {
    Config config;
    if (key.path.starts_with("optimizer.")) {
      config = read(text_for(key, "optimizer.params", Json::object()));
    } else if (key.path.starts_with("scheduler.")) {
      // Required keys of the section would be missing.
      continue;
    }
    if (!has_key(config, key)) continue;
    const auto value = other_value(config, key);
    if (!value) continue;
    try {
      config = read(text_for(key, key.path, *value));
    } catch (const c10::NotImplementedError&) {
      continue;
    } catch (const c10::ValueError& error) {
      // Contradicts the defaults of other keys.
      EXPECT_THAT(message_of(error),
                  AllOf(HasSubstr("  " + std::string(key.path) + ": "),
                        Not(HasSubstr("unknown"))));
      continue;
    }
    ++num_read;
    EXPECT_EQ(Json::parse(value_text(config, key)), *value) << key.path;
    const std::string text = config.to_json_text();
    const Config again = read(text);
    EXPECT_EQ(value_text(again, key), value_text(config, key)) << key.path;
    EXPECT_EQ(again.to_json_text(), text) << key.path;
  }
  EXPECT_GT(num_read, 80);
}

TEST(ConfigText, RoundTripKeepsEveryValueAndAddsNoNotes) {
  const Config config = read(R"({"train_batch_size": 32,
      "gradient_clipping": 0.1, "communication_data_type": "fp32",
      "gradient_allreduce_op": "sum", "steps_per_print": 7,
      "bf16": {"enabled": true},
      "data_types": {"grad_accum_dtype": "bf16"},
      "optimizer": {"type": "sgd", "params": {"lr": 0.1, "momentum": 0.9}},
      "scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5,
                    "cycle_max_lr": 0.3, "cycle_second_step_size": 9}},
      "zero_optimization": {"stage": 1, "overlap_comm": true,
                            "reduce_bucket_size": 5e7}})");
  const Config again = read(config.to_json_text());
  EXPECT_EQ(again.to_json_text(), config.to_json_text());
  EXPECT_THAT(again.notes, IsEmpty());
  for (const ConfigKey& key : config_keys()) {
    ASSERT_EQ(has_key(again, key), has_key(config, key)) << key.path;
    if (has_key(config, key)) {
      EXPECT_EQ(value_text(again, key), value_text(config, key)) << key.path;
    }
  }
}

TEST(ConfigText, DefaultRoundTrips) {
  const Config config;
  EXPECT_EQ(read(config.to_json_text()).to_json_text(), config.to_json_text());
}

TEST(ConfigSections, EngineSectionOfALargerFileReportsItsPath) {
  JsonDocument document = JsonDocument::from_text(
      R"({"train": {"steps": 0}, "engine": {"fp16": {"enabled": true},
          "bf16": {"enabled": true}, "zero_optimizaton": {}, "stage": 1}})",
      "run.json");
  document.set("engine.steps_per_print=-1");
  JsonObject root = document.root();
  std::int64_t steps = 1;
  root.object("train").read("steps", steps, {.least = 1});
  Config::from_json_object(root.object("engine"));
  root.finish();
  try {
    document.raise_if_violated();
    FAIL() << "the document has violations";
  } catch (const c10::ValueError& error) {
    EXPECT_EQ(message_of(error),
              "run.json: 5 problems\n"
              "  train.steps: expected an integer of at least 1 but found 0\n"
              "  engine.steps_per_print: expected an integer of at least 1 "
              "but found -1\n"
              "  engine.zero_optimizaton: unknown key; did you mean "
              "zero_optimization?\n"
              "  engine.stage: unknown key; did you mean "
              "engine.zero_optimization.stage?\n"
              "  engine.bf16.enabled: expected false, as fp16.enabled is true; "
              "choose one");
  }
}

TEST(ConfigValidate, ChecksWhatWasFilledInByHand) {
  Config config;
  EXPECT_NO_THROW(config.validate());
  config.zero_optimization.legacy_stage1 = true;
  EXPECT_THROW(config.validate(), c10::NotImplementedError);
  config.zero_optimization.legacy_stage1 = false;
  config.zero_optimization.stage = 7;
  config.gradient_clipping = std::numeric_limits<double>::quiet_NaN();
  config.communication_data_type = at::kDouble;
  config.optimizer.emplace().params.betas[1] = 1.0;
  try {
    config.validate();
    FAIL() << "the configuration is wrong";
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(message_of(error),
                AllOf(HasSubstr("4 problems"),
                      HasSubstr("zero_optimization.stage: expected integer "
                                "from 0 to 3 but found 7"),
                      HasSubstr("gradient_clipping"),
                      HasSubstr("communication_data_type: expected fp32, fp16 "
                                "or bf16 but found Double"),
                      HasSubstr("optimizer.params.betas")));
  }
}

}  // namespace
}  // namespace nfold
