#include "train/monitor/metrics_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nfold/errors.h"
#include "train/files/mapped_file.h"
#include "train/files/output_file.h"
#include "train/files/test_folder.h"

namespace nfold::train {
namespace {

using testing::AllOf;
using testing::HasSubstr;

StepMetrics example() {
  StepMetrics metrics{.step = 7, .loss = 4.1267409324645996, .tokens = 57344};
  metrics.tokens_per_second = 8900.25;
  metrics.step_ms = 920.5;
  metrics.report.grad_norm = 1.5;
  metrics.report.lr = 3e-4;
  metrics.report.loss_scale = 65536;
  metrics.report.forward_ms = 100.125;
  metrics.report.memory.params_bytes = 40;
  metrics.report.memory.peak_rss_bytes = 1LL << 40;
  metrics.report.comm[static_cast<std::size_t>(Collective::kReduceScatter)] = {
      3, 4096};
  return metrics;
}

TEST(MetricsJson, HasEveryField) {
  const auto json = nlohmann::json::parse(metrics_json(example()));
  for (const char* key :
       {"step", "loss", "grad_norm", "lr", "loss_scale", "skipped", "tokens",
        "tokens_per_second", "step_ms", "forward_ms", "backward_ms",
        "optimizer_ms", "comm_wait_ms"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  for (const char* key : {"params_bytes", "grads_bytes", "optimizer_bytes",
                          "gathered_peak_bytes", "peak_rss_bytes"}) {
    EXPECT_TRUE(json["memory"].contains(key)) << key;
  }
  for (const char* key : {"all_gather", "reduce_scatter", "all_reduce",
                          "all_to_all", "broadcast"}) {
    EXPECT_TRUE(json["comm"].contains(key)) << key;
  }
  EXPECT_EQ(json["step"], 7);
  EXPECT_EQ(json["skipped"], false);
  EXPECT_EQ(json["tokens"], 57344);
  EXPECT_EQ(json["tokens_per_second"], 8900.25);
  EXPECT_EQ(json["lr"], 3e-4);
  EXPECT_EQ(json["memory"]["peak_rss_bytes"], 1LL << 40);
  EXPECT_EQ(json["comm"]["reduce_scatter"]["calls"], 3);
  EXPECT_EQ(json["comm"]["reduce_scatter"]["bytes"], 4096);
  EXPECT_FALSE(json.contains("val_loss"));
}

TEST(MetricsJson, HasTheFieldsOfMixturesWhereThereAreAny) {
  StepMetrics metrics = example();
  EXPECT_FALSE(
      nlohmann::json::parse(metrics_json(metrics)).contains("aux_loss"));
  metrics.mixture = {.aux_loss = 1.25, .dropped_share = 0.125};
  const auto json = nlohmann::json::parse(metrics_json(metrics));
  EXPECT_EQ(json["aux_loss"], 1.25);
  EXPECT_EQ(json["dropped_share"], 0.125);
}

TEST(MetricsJson, LossKeepsAllBitsOfAFloat) {
  for (const float loss : {4.12674093F, 1.0F / 3, 1e-30F, 16777217.0F}) {
    StepMetrics metrics = example();
    metrics.loss = loss;
    metrics.val_loss = loss;
    const auto json = nlohmann::json::parse(metrics_json(metrics));
    EXPECT_EQ(json["loss"].get<float>(), loss);
    EXPECT_EQ(json["val_loss"].get<float>(), loss);
  }
}

TEST(MetricsJson, WritesNullForWhatIsNotFinite) {
  StepMetrics metrics = example();
  metrics.loss = std::nan("");
  metrics.report.grad_norm = std::numeric_limits<double>::infinity();
  const auto json = nlohmann::json::parse(metrics_json(metrics));
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_TRUE(json["grad_norm"].is_null());
}

class MetricsLogTest : public testing::Test {
 protected:
  std::vector<std::int64_t> steps() {
    std::vector<std::int64_t> steps;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) {
      steps.push_back(nlohmann::json::parse(line)["step"]);
    }
    return steps;
  }
  void write_steps(MetricsLog* log, std::int64_t first, std::int64_t last) {
    StepMetrics metrics = example();
    for (metrics.step = first; metrics.step <= last; ++metrics.step) {
      log->write(metrics);
    }
  }

  TestFolder folder_;
  std::filesystem::path path_ = folder_ / "metrics.jsonl";
};

TEST_F(MetricsLogTest, LinesAreThereAtOnce) {
  MetricsLog log(path_);
  write_steps(&log, 1, 2);
  EXPECT_EQ(steps(), (std::vector<std::int64_t>{1, 2}));
}

TEST_F(MetricsLogTest, ResumeDropsLinesThatComeAgain) {
  {
    MetricsLog log(path_);
    write_steps(&log, 1, 5);
  }
  std::ofstream(path_, std::ios::app) << R"({"step":6,"lo)";  // a crash
  {
    MetricsLog log(path_, 3);
    write_steps(&log, 4, 4);
  }
  EXPECT_EQ(steps(), (std::vector<std::int64_t>{1, 2, 3, 4}));
  {
    MetricsLog log(path_, 100);
    write_steps(&log, 5, 5);
  }
  EXPECT_EQ(steps(), (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
  MetricsLog log(path_);
  EXPECT_TRUE(steps().empty());
}

TEST_F(MetricsLogTest, ResumeWithoutFileStartsOne) {
  MetricsLog log(path_, 3);
  write_steps(&log, 4, 4);
  EXPECT_EQ(steps(), (std::vector<std::int64_t>{4}));
}

TEST_F(MetricsLogTest, FullDiskIsAnErrorWithThePath) {
  MetricsLog log("/dev/full");
  try {
    log.write(example());
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(message_of(error),
                AllOf(HasSubstr("/dev/full"), HasSubstr("No space left"),
                      HasSubstr("free some space")));
  }
}

TEST_F(MetricsLogTest, MissingFolderIsAnErrorWithThePath) {
  EXPECT_THROW(MetricsLog(folder_ / "none" / "metrics.jsonl"), IoError);
}

TEST(OutputFileTest, RewritesWhatIsBuffered) {
  const TestFolder folder;
  OutputFile file(folder / "x");
  file.write("....tail");
  file.rewrite(0, "head");
  file.close(Sync::kYes);
  EXPECT_EQ(read_file(folder / "x"), "headtail");
  EXPECT_EQ(file.size_bytes(), 8U);
}

TEST(OutputFileTest, WritesMoreThanItsBuffer) {
  const TestFolder folder;
  std::string expected;
  OutputFile file(folder / "x");
  for (int i = 0; i < 100; ++i) {
    const std::string part(10007, static_cast<char>('a' + i % 26));
    file.write(part);
    expected += part;
  }
  file.close();
  EXPECT_EQ(read_file(folder / "x"), expected);
}

TEST(WriteFileAtomically, KeepsTheOldFileWhenItFails) {
  const TestFolder folder;
  write_file_atomically(folder / "x", "old");
  write_file_atomically(folder / "x", "new");
  EXPECT_EQ(read_file(folder / "x"), "new");
  EXPECT_THROW(write_file_atomically(folder / "none" / "x", "y"), IoError);
  std::filesystem::create_directory(folder / "d");
  std::ofstream(folder / "d" / "in") << "kept";
  EXPECT_THROW(write_file_atomically(folder / "d", "y"), IoError);
  EXPECT_EQ(read_file(folder / "d" / "in"), "kept");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()),
                          std::filesystem::directory_iterator()),
            2);
}

}  // namespace
}  // namespace nfold::train
