#include "train/trainer_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kModel =
    R"("model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 32,
       "vocab_size": 300})";
constexpr const char* kEngine =
    R"("engine": {"train_micro_batch_size_per_gpu": 1})";

class TrainerConfigTest : public testing::Test {
 protected:
  TrainerConfig read(const std::string& sections,
                     const std::vector<std::string>& overrides = {}) {
    std::ofstream(path_) << "{" << sections << "}";
    return TrainerConfig::read(path_, overrides);
  }
  std::string error_of(const std::string& sections,
                       const std::vector<std::string>& overrides = {}) {
    try {
      read(sections, overrides);
    } catch (const std::exception& error) {
      return message_of(error);
    }
    return "no error";
  }
  std::string with(const std::string& rest) {
    return std::string(kModel) + "," + kEngine + "," + rest;
  }

  const std::string path_ = testing::TempDir() + "nfold_trainer_config.json";
};

TEST_F(TrainerConfigTest, FillsInDefaults) {
  const auto config = read(with(R"("data": {"path": "text"})"));
  EXPECT_EQ(config.name, "nfold_trainer_config");
  EXPECT_EQ(config.data.path, std::vector<std::string>{"text"});
  EXPECT_EQ(config.data.prepared, "data/nfold_trainer_config");
  EXPECT_EQ(config.data.sequence_length, 32);
  EXPECT_EQ(config.data.vocab_size, 300);
  EXPECT_EQ(config.train.steps, 1000);
}

TEST_F(TrainerConfigTest, OverridesWin) {
  const auto config =
      read(with(R"("data": {"synthetic": true}, "train": {"steps": 5})"),
           {"train.steps=7", "engine.zero_optimization.stage=2",
            "train.dtype=bf16"});
  EXPECT_EQ(config.train.steps, 7);
  EXPECT_EQ(config.engine.zero_optimization.stage, 2);
  EXPECT_TRUE(config.engine.bf16.enabled);
}

TEST_F(TrainerConfigTest, EffectiveConfigurationReadsBackEqual) {
  for (const char* data :
       {R"("data": {"synthetic": true, "synthetic_batches": 3,
                    "sequence_length": 8})",
        R"("data": {"path": ["a", "b"], "extensions": [".py"]},
           "train": {"dtype": "bf16", "sample_prompt": "import \"x\"\n"})"}) {
    const std::string text = read(with(data)).to_json_text();
    const auto brace = text.find('{');
    const auto inner = text.substr(brace + 1, text.rfind('}') - brace - 1);
    EXPECT_EQ(read(inner).to_json_text(), text);
  }
}

TEST_F(TrainerConfigTest, AllViolationsOfAllSectionsComeAtOnce) {
  EXPECT_THAT(
      error_of(R"("model": {"n_layer": 1, "n_embd": 15, "n_head": 2,
                            "n_positions": 32},
                          "data": {"sequence_length": 64, "sinthetic": true},
                          "train": {"stesp": 5, "seed": -1},
                          "engine": {"train_batch_size": 1, "zero": {}},
                          "trian": {})"),
      AllOf(HasSubstr("model.n_embd"), HasSubstr("data.sequence_length"),
            HasSubstr("data.sinthetic"), HasSubstr("data.path"),
            HasSubstr("train.stesp"), HasSubstr("steps"),
            HasSubstr("train.seed"), HasSubstr("trian")));
}

TEST_F(TrainerConfigTest, ContradictionsAreNamed) {
  EXPECT_THAT(error_of(with(R"("data": {"synthetic": true, "path": "x"})")),
              HasSubstr("expected one of them"));
  EXPECT_THAT(error_of(std::string(kModel) +
                       R"(, "engine": {"bf16": {"enabled": true},
                            "train_batch_size": 1},
                          "data": {"synthetic": true},
                          "train": {"dtype": "fp16"})"),
              HasSubstr("engine.bf16.enabled"));
  EXPECT_THAT(
      error_of(with(R"("data": {"path": "x", "synthetic_batches": 1})")),
      HasSubstr("data.synthetic_batches: only synthetic tokens"));
  EXPECT_THAT(error_of(kModel), HasSubstr("engine"));
  EXPECT_THAT(error_of(std::string(kModel) +
                       R"(, "engine": {"train_batch_size": 1,
                               "sequence_parallel_size": 3},
                    "data": {"synthetic": true, "sequence_length": 32})"),
              HasSubstr("found 32, which does not divide by "
                        "engine.sequence_parallel_size 3"));
}

TEST_F(TrainerConfigTest, WeightsAreAFileOfTheWholeModel) {
  const std::string missing =
      R"("data": {"synthetic": true}, "train": {"weights": "no/such.file"})";
  EXPECT_THAT(error_of(with(missing)),
              AllOf(HasSubstr("train.weights"), HasSubstr("no/such.file")));
  EXPECT_THAT(error_of(std::string(kModel) +
                       R"(, "engine": {"train_batch_size": 2,
                               "tensor_parallel_size": 2},)" +
                       missing),
              HasSubstr("expected engine.tensor_parallel_size"));
}

TEST_F(TrainerConfigTest, ExpertsMustDivideOverTheirRanks) {
  const auto error = [&](const std::string& experts, int size) {
    return error_of(
        R"("model": {"n_layer": 2, "n_embd": 16, "n_head": 2,
            "vocab_size": 300)" +
        experts +
        R"(}, "data": {"synthetic": true},
            "engine": {"train_batch_size": 4, "expert_parallel_size": )" +
        std::to_string(size) + "}");
  };
  EXPECT_THAT(error(R"(, "num_local_experts": 4)", 3),
              AllOf(HasSubstr("expert_parallel_size"), HasSubstr("4 experts"),
                    HasSubstr("3 ranks")));
  EXPECT_THAT(error("", 2), HasSubstr("model.num_local_experts"));
  EXPECT_EQ(error(R"(, "num_local_experts": 4)", 2), "no error");
}

TEST_F(TrainerConfigTest, EveryExampleReads) {
  int num_examples = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(NFOLD_EXAMPLES_DIR)) {
    if (entry.path().extension() != ".json") continue;
    EXPECT_NO_THROW(TrainerConfig::read(entry.path().string(), {}))
        << entry.path();
    ++num_examples;
  }
  EXPECT_GE(num_examples, 3);
}

}  // namespace
}  // namespace nfold::train
