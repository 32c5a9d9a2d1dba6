#include "nfold/checkpoint_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "checkpoint/test_folder.h"
#include "nfold/errors.h"
#include "testing/process_world.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

void write_bytes(const std::string& path, int num_bytes) {
  std::ofstream(path) << std::string(num_bytes, 'x');
}

TEST(EnsureDirectoryExists, MakesTheWholeChainOnceOrAgain) {
  const TestFolder folder;
  const auto file = folder / "a/b/c/model.bin";
  ensure_directory_exists(file);
  EXPECT_TRUE(std::filesystem::is_directory(folder / "a/b/c"));
  EXPECT_FALSE(std::filesystem::exists(file));
  ensure_directory_exists(file);
  ensure_directory_exists("no_folder_in_the_name");
}

TEST(EnsureDirectoryExists, AFileInTheWayIsAnError) {
  const TestFolder folder;
  write_bytes(folder / "a", 1);
  EXPECT_THAT(text_of<IoError>(
                  [&] { ensure_directory_exists(folder / "a/b/model.bin"); }),
              HasSubstr(folder / "a/b"));
}

TEST(CheckpointFolderSize, AddsUpFilesAtEveryDepthOncePerHost) {
  const TestFolder folder;
  ensure_directory_exists(folder / "step1/optimizer/state");
  write_bytes(folder / "step1/weights", 1000);
  write_bytes(folder / "step1/optimizer/state", 234);
  write_bytes(folder / "other", 7);
  EXPECT_EQ(folder_size_bytes(folder / "step1"), 1234);
  run_ranks(3, [&](World& world) {
    EXPECT_EQ(get_checkpoint_folder_size(world, folder.path(), "step1"), 1234);
  });
}

TEST(CheckpointFolderSize, AMissingFolderIsAnErrorOnEveryRank) {
  const TestFolder folder;
  run_ranks(2, [&](World& world) {
    EXPECT_THAT(text_of<IoError>([&] {
                  get_checkpoint_folder_size(world, folder.path(), "none");
                }),
                HasSubstr("none"));
  });
}

// Ranks 0 and 1 on one made-up host, rank 2 on another; both see one folder.
const ProcessBody kTwoFolders("TwoFolders", [] {
  const bool is_last = std::getenv("RANK") == std::string("2");
  ::setenv("NFOLD_HOST", is_last ? "right" : "left", 1);
  const World world = World::from_environment();
  const std::string folder = std::getenv("NFOLD_TEST_FOLDER");
  EXPECT_EQ(get_checkpoint_folder_size(world, folder, "step1"), 2 * 1000);
});

TEST(CheckpointFolderSize, AddsUpTheFoldersOfAllHosts) {
  const TestFolder folder;
  ensure_directory_exists(folder / "step1/weights");
  write_bytes(folder / "step1/weights", 1000);
  ProcessWorld ranks("TwoFolders", 3,
                     {.environment = {{"NFOLD_TEST_FOLDER", folder.path()}}});
  for (const auto& rank : ranks.wait()) {
    EXPECT_EQ(rank.exit_code, 0) << rank.output;
  }
}

}  // namespace
}  // namespace nfold
