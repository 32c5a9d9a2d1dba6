// The nfold program as a user runs it: train and generate on a small text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "train/files/test_folder.h"

namespace nfold::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::json;

struct Outcome {
  int exit_code = 0;
  std::string output;  // standard output and error together
};

Outcome run(const std::string& arguments) {
  const std::string command = std::string("OMP_NUM_THREADS=1 ") +
                              NFOLD_PROGRAM + " " + arguments + " 2>&1";
  Outcome outcome;
  FILE* pipe = popen(command.c_str(), "r");
  std::array<char, 4096> buffer;
  std::size_t count = 0;
  while ((count = fread(buffer.data(), 1, buffer.size(), pipe)) > 0) {
    outcome.output.append(buffer.data(), count);
  }
  outcome.exit_code = WEXITSTATUS(pclose(pipe));
  return outcome;
}

class TrainProgramTest : public testing::Test {
 protected:
  TrainProgramTest() {
    std::ofstream text(folder_.path() / "text.py");
    for (int i = 0; i < 400; ++i) {
      text << "def function_" << i << "(value):\n    return value + "
           << i * 7 % 13 << "\n\n";
    }
    text.close();
    write_config(R"({"steps": 6, "eval_interval": 3, "eval_batches": 2,
                     "sample_tokens": 10})");
  }

  void write_config(const std::string& train,
                    const std::string& optimizer =
                        R"({"type": "AdamW", "params": {"lr": 0.003}})") {
    std::ofstream(config_) << R"({
      "model": {"n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 32,
                "activation_checkpointing": true},
      "data": {"path": ")" << (folder_.path() / "text.py").string()
                           << R"(", "prepared": ")"
                           << (folder_.path() / "data").string()
                           << R"(", "vocab_size": 300, "val_fraction": 0.2},
      "train": )" << train << R"(,
      "engine": {"train_batch_size": 4, "optimizer": )"
                           << optimizer << R"(,
                 "zero_optimization": {"stage": 2}}})";
  }

  std::string train(const std::string& run_name, int num_ranks = 1) {
    return "train " + config_ + " --nproc " + std::to_string(num_ranks) +
           " --run-dir " + run_dir(run_name).string();
  }
  std::filesystem::path run_dir(const std::string& name) {
    return folder_.path() / name;
  }
  std::vector<Json> metrics(const std::string& run_name) {
    std::ifstream in(run_dir(run_name) / "metrics.jsonl");
    std::vector<Json> result;
    for (std::string line; std::getline(in, line);) {
      result.push_back(Json::parse(line));
    }
    return result;
  }

  TestFolder folder_;
  const std::string config_ = (folder_.path() / "tiny.json").string();
};

TEST_F(TrainProgramTest, TrainsOverTwoRanksReportsAndGenerates) {
  const Outcome outcome = run(train("run", 2));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr("train loss"), HasSubstr("validation loss"),
                    HasSubstr("rank 1"), HasSubstr("one process"),
                    HasSubstr("optimizer state"), HasSubstr("all_gather"),
                    HasSubstr("--- sample ---\ndef ")));
  const auto lines = metrics("run");
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_EQ(lines[5]["step"], 6);
  EXPECT_EQ(lines[5]["tokens"], 6 * 4 * 32);
  EXPECT_FALSE(lines[1].contains("val_loss"));
  EXPECT_TRUE(lines[2].contains("val_loss"));
  EXPECT_LT(lines[5]["loss"].get<double>(), lines[0]["loss"].get<double>());
  EXPECT_GT(lines[5]["memory"]["optimizer_bytes"].get<std::int64_t>(), 0);

  std::ifstream effective(run_dir("run") / "config.effective.json");
  EXPECT_EQ(Json::parse(effective)["model"]["vocab_size"], 300);

  const std::string generate = "generate --run-dir " + run_dir("run").string() +
                               " --prompt 'def f' --max-tokens 12 --seed 3";
  const Outcome text = run(generate);
  EXPECT_EQ(text.exit_code, 0) << text.output;
  EXPECT_THAT(text.output, testing::StartsWith("def f"));
  EXPECT_GT(text.output.size(), 6u);
  EXPECT_EQ(run(generate).output, text.output);
}

TEST_F(TrainProgramTest, StartsFromTheWeightsOfAnotherRun) {
  ASSERT_EQ(run(train("first")).exit_code, 0);
  const std::string weights = (run_dir("first") / "model.safetensors").string();
  const std::string options =
      " --set train.steps=2 --set train.weights=" + weights +
      " --set engine.zero_optimization.stage=";
  for (const int stage : {0, 3}) {
    const std::string name = "stage" + std::to_string(stage);
    const Outcome outcome =
        run(train(name, 2) + options + std::to_string(stage));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  }
  const double first = metrics("stage0")[0]["loss"].get<double>();
  EXPECT_LT(first, metrics("first")[0]["loss"].get<double>());
  EXPECT_EQ(metrics("stage3")[0]["loss"].get<double>(), first);
  EXPECT_EQ(metrics("stage3")[1]["loss"], metrics("stage0")[1]["loss"]);
}

// Weights in 8 bits, gradients in 4: the same loss in the end, nearly.
TEST_F(TrainProgramTest, QuantizationLeavesTheLossWhereItWas) {
  const auto final_loss = [&](const std::string& name,
                              const std::vector<std::string>& keys) {
    std::string command =
        train(name, 2) +
        " --set train.steps=80 --set train.eval_interval=80"
        " --set engine.zero_optimization.stage=3"
        " --set engine.zero_optimization.stage3_param_persistence_threshold=0";
    for (const auto& key : keys) {
      command += " --set engine.zero_optimization." + key;
    }
    const Outcome outcome = run(command);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    return metrics(name).back()["val_loss"].get<double>();
  };
  const auto exact = final_loss("exact", {});
  const auto weights = final_loss("weights", {"zero_quantized_weights=true"});
  const auto both = final_loss(
      "both",
      {"zero_hpz_partition_size=2", "zero_quantized_weights=true",
       "zero_quantized_gradients=true", "zeropp_loco_param.err_beta=0.8"});
  EXPECT_NE(weights, exact) << "nothing was quantized";
  EXPECT_NEAR(weights, exact, 0.01 * exact);
  EXPECT_NEAR(both, exact, 0.02 * exact);
}

// The same training whether ranks share out the experts or each has all; the
// file of weights has all in both cases.
TEST_F(TrainProgramTest, TrainsExpertsThatRanksShareOut) {
  const std::string experts =
      " --set model.num_local_experts=4 --set engine.zero_optimization.stage=3";
  const Outcome alone = run(train("alone", 2) + experts);
  ASSERT_EQ(alone.exit_code, 0) << alone.output;
  const Outcome shared = run(train("shared", 2) + experts +
                             " --set engine.expert_parallel_size=2");
  ASSERT_EQ(shared.exit_code, 0) << shared.output;
  EXPECT_THAT(shared.output, HasSubstr("all_to_all"));
  const auto expected = metrics("alone");
  const auto actual = metrics("shared");
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    for (const char* key : {"loss", "grad_norm", "aux_loss"}) {
      EXPECT_NEAR(actual[i][key].get<double>(), expected[i][key].get<double>(),
                  1e-4 * expected[i][key].get<double>())
          << key << " of step " << i + 1;
    }
    EXPECT_GE(actual[i]["aux_loss"].get<double>(), 0.9);
    EXPECT_LT(actual[i]["dropped_share"].get<double>(), 0.5);
  }
  const auto text_of = [&](const std::string& run_name) {
    const Outcome text =
        run("generate --run-dir " + run_dir(run_name).string() +
            " --prompt 'def f' --max-tokens 12 --temperature 0");
    EXPECT_EQ(text.exit_code, 0) << text.output;
    return text.output;
  };
  EXPECT_EQ(text_of("shared"), text_of("alone"));
  const Outcome refused = run(train("refused", 2) + experts +
                              " --set engine.expert_parallel_size=3");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.output,
              AllOf(HasSubstr("4 experts"), HasSubstr("3 ranks")));
}

TEST_F(TrainProgramTest, RanksAndMicroStepsDivideTheSameBatch) {
  ASSERT_EQ(run(train("two", 2)).exit_code, 0);
  ASSERT_EQ(run(train("one") + " --set engine.gradient_accumulation_steps=2")
                .exit_code,
            0);
  const auto two = metrics("two");
  const auto one = metrics("one");
  ASSERT_EQ(two.size(), one.size());
  for (std::size_t i = 0; i < two.size(); ++i) {
    EXPECT_NEAR(two[i]["loss"].get<double>(), one[i]["loss"].get<double>(),
                1e-4)
        << "step " << i + 1;
  }
}

TEST_F(TrainProgramTest, MeshShowsTheGroupsOfAConfiguration) {
  const std::string mesh =
      "mesh " + config_ + " --set engine.tensor_parallel_size=2 --ranks ";
  const Outcome shown = run(mesh + "4");
  EXPECT_EQ(shown.exit_code, 0);
  EXPECT_THAT(shown.output,
              AllOf(HasSubstr("4 ranks: 2 data x 1 sequence x 2 tensor"),
                    HasSubstr("[0 1] [2 3]")));
  const Outcome refused = run(mesh + "3");
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.output, HasSubstr("3 is not divisible by 2"));
}

// Losses within the rounding of fp32 sums, and tokens counted once.
void expect_same_training(const std::vector<Json>& found,
                          const std::vector<Json>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    SCOPED_TRACE(i + 1);
    EXPECT_EQ(found[i]["tokens"], expected[i]["tokens"]);
    for (const char* key : {"loss", "val_loss", "grad_norm"}) {
      if (!expected[i].contains(key)) continue;
      EXPECT_NEAR(found[i][key].get<double>(), expected[i][key].get<double>(),
                  1e-4)
          << key;
    }
  }
}

TEST_F(TrainProgramTest, TensorAndSequenceGroupsTrainAsOneRank) {
  ASSERT_EQ(run(train("one")).exit_code, 0);
  const std::string tensor = " --set engine.tensor_parallel_size=2";
  const std::string sequence = " --set engine.sequence_parallel_size=2";
  const Outcome split = run(train("tensor", 2) + tensor);
  ASSERT_EQ(split.exit_code, 0) << split.output;
  EXPECT_THAT(split.output,
              AllOf(HasSubstr("2 ranks (1 data x 1 sequence x 2 tensor)"),
                    HasSubstr("part, unsharded"), HasSubstr("all_reduce")));
  expect_same_training(metrics("tensor"), metrics("one"));
  const Outcome parted = run(train("sequence", 2) + sequence);
  ASSERT_EQ(parted.exit_code, 0) << parted.output;
  expect_same_training(metrics("sequence"), metrics("one"));
  // The text that a split model continues, and the file that it saves.
  const std::string generate =
      " --prompt 'def f' --temperature 0 --max-tokens 12";
  EXPECT_EQ(
      run("generate --run-dir " + run_dir("tensor").string() + generate).output,
      run("generate --run-dir " + run_dir("one").string() + generate).output);
}

TEST_F(TrainProgramTest, SizesThatDoNotFitTheModelAreOneMessage) {
  const Outcome heads =
      run(train("run", 4) + " --set engine.tensor_parallel_size=4");
  EXPECT_NE(heads.exit_code, 0);
  EXPECT_THAT(heads.output,
              HasSubstr("(n_head): 2 do not divide by the 4 ranks"));
}

TEST_F(TrainProgramTest, RunDirectoryIsNeverOverwrittenUnasked) {
  ASSERT_EQ(run(train("run")).exit_code, 0);
  const Outcome refused = run(train("run", 2));
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.output,
              AllOf(HasSubstr("--run-dir"), HasSubstr("--overwrite")));
  EXPECT_EQ(metrics("run").size(), 6u);
  const Outcome allowed =
      run(train("run") + " --overwrite --set train.steps=2");
  EXPECT_EQ(allowed.exit_code, 0) << allowed.output;
  EXPECT_EQ(metrics("run").size(), 2u);
}

TEST_F(TrainProgramTest, LossThatIsNotFiniteIsOneErrorWithRankAndStep) {
  write_config(R"({"steps": 50})",
               R"({"type": "SGD", "params": {"lr": 1e30}})");
  const Outcome outcome = run(train("run", 2));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr("[rank 0] step "), HasSubstr("the loss is")));
  EXPECT_LT(metrics("run").size(), 50u);
}

TEST_F(TrainProgramTest, BadConfigurationsAreOneClearError) {
  const Outcome key = run(train("run", 2) + " --set train.stpes=3");
  EXPECT_EQ(key.exit_code, 1);
  EXPECT_THAT(key.output, AllOf(HasSubstr("train.stpes"), HasSubstr("steps"),
                                Not(HasSubstr("frame #"))));
  const Outcome batch = run(train("run", 3));
  EXPECT_EQ(batch.exit_code, 1);
  EXPECT_THAT(batch.output, HasSubstr("train_batch_size"));
  const Outcome vocab = run(train("run") + " --set model.vocab_size=270");
  EXPECT_EQ(vocab.exit_code, 1) << vocab.output;
  const Outcome file = run("train /no/such.json");
  EXPECT_EQ(file.exit_code, 1);
  EXPECT_THAT(file.output, HasSubstr("/no/such.json"));
  const Outcome run_less = run("generate --run-dir " + run_dir("x").string());
  EXPECT_EQ(run_less.exit_code, 1);
  EXPECT_THAT(run_less.output, HasSubstr("model.safetensors"));
}

TEST_F(TrainProgramTest, DamagedWeightsAreAClearError) {
  ASSERT_EQ(run(train("run")).exit_code, 0);
  const auto weights = run_dir("run") / "model.safetensors";
  std::filesystem::resize_file(weights,
                               std::filesystem::file_size(weights) / 2);
  const Outcome outcome =
      run("generate --prompt x --run-dir " + run_dir("run").string());
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr("model.safetensors"), HasSubstr("truncated")));
}

}  // namespace
}  // namespace nfold::train
