#include "train/data/data_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "nfold/errors.h"
#include "train/data/prepare.h"
#include "train/files/test_folder.h"

namespace nfold::train {
namespace {

using testing::HasSubstr;

class DataCommand : public testing::Test {
 protected:
  void SetUp() override {
    for (int file = 0; file < 5; ++file) {
      std::ofstream out(folder_ / ("f" + std::to_string(file) + ".txt"));
      for (int i = 0; i < 50; ++i) out << file << " some words " << i << '\n';
    }
  }

  // Standard output of the command.
  std::string run(std::vector<std::string> arguments) {
    CLI::App app("nfold");
    app.require_subcommand(1);
    add_data_command(app);
    std::reverse(arguments.begin(), arguments.end());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    try {
      app.parse(std::move(arguments));
    } catch (...) {
      testing::internal::GetCapturedStdout();
      testing::internal::GetCapturedStderr();
      throw;
    }
    testing::internal::GetCapturedStderr();
    return testing::internal::GetCapturedStdout();
  }

  TestFolder folder_;
};

TEST_F(DataCommand, PreparesOnceAndPrintsResult) {
  const std::vector<std::string> arguments = {"data",
                                              "prepare",
                                              "--input",
                                              (folder_ / "f0.txt").string(),
                                              (folder_ / "f1.txt").string(),
                                              "--output",
                                              (folder_ / "out").string(),
                                              "--vocab-size",
                                              "280"};
  const std::string first = run(arguments);
  EXPECT_THAT(first, HasSubstr("vocabulary"));
  EXPECT_THAT(first, Not(HasSubstr("up to date")));
  const PreparedData data = open_prepared(folder_ / "out");
  EXPECT_EQ(data.vocab_size, 280);
  EXPECT_EQ(data.num_files, 2);
  EXPECT_THAT(first, HasSubstr(data.corpus_hash));
  EXPECT_THAT(run(arguments), HasSubstr("up to date"));
}

TEST_F(DataCommand, ErrorsReachTheCaller) {
  EXPECT_THROW(run({"data", "prepare", "--input", "/missing", "--output",
                    (folder_ / "out").string()}),
               c10::ValueError);
  EXPECT_THROW(run({"data", "prepare", "--input", folder_.path().string()}),
               CLI::RequiredError);
  EXPECT_THROW(run({"data"}), CLI::RequiredError);
}

}  // namespace
}  // namespace nfold::train
