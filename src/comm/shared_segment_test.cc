#include "comm/shared_segment.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::filesystem::path path_of(const std::string& name) {
  return std::filesystem::path("/dev/shm") / name;
}

TEST(SharedSegment, IsSeenByWhoeverOpensIt) {
  auto made = SharedSegment::create(10000);
  EXPECT_EQ(made.num_bytes(), 10000);
  EXPECT_EQ(made.data()[9999], std::byte{0});
  const auto opened = SharedSegment::open(made.name(), 10000);
  made.data()[9999] = std::byte{7};
  EXPECT_EQ(opened.data()[9999], std::byte{7});
}

TEST(SharedSegment, OutlivesItsName) {
  auto made = SharedSegment::create(100);
  const auto opened = SharedSegment::open(made.name(), 100);
  made.unlink();
  EXPECT_FALSE(std::filesystem::exists(path_of(made.name())));
  made.data()[0] = std::byte{1};
  made = SharedSegment();
  EXPECT_EQ(opened.data()[0], std::byte{1});
}

TEST(SharedSegment, LeavesNoNameBehind) {
  std::string name;
  {
    const auto made = SharedSegment::create(100);
    name = made.name();
    EXPECT_TRUE(std::filesystem::exists(path_of(name)));
    struct stat info {};
    ASSERT_EQ(::stat(path_of(name).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600) << "other users must not read it";
  }
  EXPECT_FALSE(std::filesystem::exists(path_of(name)));
}

TEST(SharedSegment, ErrorSaysWhatIsMissing) {
  EXPECT_THAT(text_of<c10::Error>([] { SharedSegment::open("nfold.none", 1); }),
              AllOf(HasSubstr("/dev/shm/nfold.none"), HasSubstr("No such file"),
                    HasSubstr("NFOLD_TRANSPORT")));
  const auto made = SharedSegment::create(100);
  EXPECT_THAT(
      text_of<c10::Error>([&] { SharedSegment::open(made.name(), 200); }),
      HasSubstr("has 100 bytes but expected 200"));
}

TEST(SharedSegment, TooLittleSpaceIsSaidWithSizes) {
  const auto space = shared_space();
  if (space.total_bytes == 0) GTEST_SKIP() << "/dev/shm has no limit here";
  const auto too_much = static_cast<std::size_t>(space.total_bytes) * 2;
  EXPECT_THAT(text_of<c10::Error>([&] { SharedSegment::create(too_much); }),
              AllOf(HasSubstr("free in /dev/shm"), HasSubstr("MiB"),
                    HasSubstr("--shm-size"), HasSubstr("NFOLD_TRANSPORT")));
  EXPECT_THAT(
      text_of<c10::Error>([&] {
        check_shared_space(static_cast<std::int64_t>(too_much),
                           "the shards of 2 ranks");
      }),
      AllOf(HasSubstr("the shards of 2 ranks take"), HasSubstr("--shm-size")));
  EXPECT_NO_THROW(check_shared_space(1, "one byte"));
}

TEST(SharedSegment, StaleFilesOfDeadProcessesAreRemoved) {
  // A process that is certainly gone.
  const pid_t gone = ::fork();
  if (gone == 0) ::_exit(0);
  ASSERT_EQ(::waitpid(gone, nullptr, 0), gone);
  const auto name_of = [](pid_t pid, const char* rest) {
    return "nfold." + std::to_string(::getuid()) + "." + std::to_string(pid) +
           "." + rest;
  };
  const auto old = path_of(name_of(gone, "old"));
  const auto recent = path_of(name_of(gone, "recent"));
  const auto living = path_of(name_of(::getpid(), "living"));
  for (const auto& path : {old, recent, living}) std::ofstream(path) << "x";
  const timespec long_ago[2] = {{1000, 0}, {1000, 0}};
  for (const auto& path : {old, living}) {
    ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), long_ago, 0), 0);
  }
  EXPECT_GE(remove_stale_segments(), 1);
  EXPECT_FALSE(std::filesystem::exists(old));
  EXPECT_TRUE(std::filesystem::exists(recent));
  EXPECT_TRUE(std::filesystem::exists(living));
  for (const auto& path : {recent, living}) std::filesystem::remove(path);
}

}  // namespace
}  // namespace nfold
