#include "train/monitor/event_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "nfold/errors.h"
#include "testing/skip.h"
#include "train/files/mapped_file.h"
#include "train/files/test_folder.h"

namespace nfold::train {
namespace {

TEST(Crc32c, GivesValuesOfTheStandard) {
  // RFC 3720, appendix B.4.
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62A8AB43U);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U);
  EXPECT_EQ(crc32c(""), 0U);
}

template <typename T>
T read_at(const std::string& bytes, std::size_t offset) {
  T value{};
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

TEST(EventWriterTest, BeginsWithFileVersion) {
  const TestFolder folder;
  const EventWriter events(folder.path());
  EXPECT_THAT(events.path().filename().string(),
              testing::StartsWith("events.out.tfevents."));
  const std::string bytes = read_file(events.path());
  const auto length = read_at<std::uint64_t>(bytes, 0);
  ASSERT_EQ(bytes.size(), 8 + 4 + length + 4);
  EXPECT_EQ(read_at<std::uint32_t>(bytes, 8),
            masked_crc32c(bytes.substr(0, 8)));
  const std::string event = bytes.substr(12, length);
  EXPECT_EQ(read_at<std::uint32_t>(bytes, 12 + length), masked_crc32c(event));
  EXPECT_THAT(event, testing::HasSubstr("brain.Event:2"));
}

TEST(EventWriterTest, NamesFolderThatIsMissing) {
  EXPECT_THROW(EventWriter("/missing/folder"), IoError);
}

class TensorboardPackage : public testing::Test {
 protected:
  void SetUp() override {
    const std::string probe =
        std::string(NFOLD_TEST_PYTHON) + " -c 'import tensorboard' 2>/dev/null";
    if (std::system(probe.c_str()) != 0) {
      NFOLD_SKIP(NFOLD_TEST_PYTHON " has no package tensorboard");
    }
  }

  nlohmann::json read_back() {
    const std::string command = std::string(NFOLD_TEST_PYTHON) + " " +
                                NFOLD_TEST_SOURCE_DIR "/read_events.py " +
                                folder_.path().string() + " 2>/dev/null";
    std::string output;
    FILE* pipe = ::popen(command.c_str(), "r");
    std::array<char, 4096> chunk{};
    while (std::fgets(chunk.data(), chunk.size(), pipe) != nullptr) {
      output += chunk.data();
    }
    EXPECT_EQ(::pclose(pipe), 0);
    return nlohmann::json::parse(output, nullptr, false);
  }

  TestFolder folder_;
};

TEST_F(TensorboardPackage, ReadsScalarsBack) {
  EventWriter events(folder_.path());
  events.add_scalar("loss", 4.125, 0, 1700000000.5);
  events.add_scalar("loss", -1e-30, 300);
  events.add_scalar("loss", 3.0e38, 1LL << 40);
  events.add_scalar("größe/λ", 7, 1);
  StepMetrics metrics{.step = 12, .loss = 2.5, .samples = 96, .val_loss = 2.75};
  metrics.tokens_per_second = 1000;
  metrics.report.lr = 0.125;
  metrics.report.loss_scale = 65536;
  metrics.report.forward_ms = 1.5;
  metrics.report.backward_ms = 2.5;
  metrics.report.optimizer_ms = 3.5;
  write_step_events(metrics, &events);
  const nlohmann::json scalars = read_back();
  ASSERT_TRUE(scalars.is_object());
  EXPECT_EQ(scalars["file_version"], 2.0);
  ASSERT_EQ(scalars["loss"].size(), 3U);
  EXPECT_EQ(scalars["loss"][0], (nlohmann::json{0, 4.125, 1700000000.5}));
  EXPECT_EQ(scalars["loss"][1][0], 300);
  EXPECT_FLOAT_EQ(scalars["loss"][1][1].get<float>(), -1e-30F);
  EXPECT_EQ(scalars["loss"][2][0], 1LL << 40);
  EXPECT_FLOAT_EQ(scalars["loss"][2][1].get<float>(), 3.0e38F);
  EXPECT_EQ(scalars["größe/λ"][0][1], 7.0);
  const auto value = [&](const std::string& tag) {
    EXPECT_EQ(scalars[tag][0][0], 96) << tag;
    return scalars[tag][0][1].get<double>();
  };
  EXPECT_EQ(value("Train/Samples/train_loss"), 2.5);
  EXPECT_EQ(value("Train/Samples/lr"), 0.125);
  EXPECT_EQ(value("Train/Samples/loss_scale"), 65536);
  EXPECT_EQ(value("Train/Samples/elapsed_time_ms_forward"), 1.5);
  EXPECT_EQ(value("Train/Samples/elapsed_time_ms_backward"), 2.5);
  EXPECT_EQ(value("Train/Samples/elapsed_time_ms_step"), 3.5);
  EXPECT_EQ(value("Validation/Samples/loss"), 2.75);
}

}  // namespace
}  // namespace nfold::train
