#include "nfold/checkpoint_folder.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <system_error>

#include "nfold/collectives.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

namespace fs = std::filesystem;

void check_io(const std::error_code& error, const char* action,
              const fs::path& folder) {
  NFOLD_CHECK_IO(!error, "cannot ", action, " folder ", folder.string(), ": ",
                 error.message());
}

}  // namespace

void ensure_directory_exists(const std::string& file) {
  const auto folder = fs::path(file).parent_path();
  if (folder.empty()) return;
  std::error_code error;
  fs::create_directories(folder, error);
  check_io(error, "make", folder);
}

std::int64_t folder_size_bytes(const std::string& folder) {
  std::error_code error;
  std::uintmax_t num_bytes = 0;
  fs::recursive_directory_iterator entry(folder, error);
  check_io(error, "read", folder);
  for (; entry != fs::end(entry); entry.increment(error)) {
    check_io(error, "read", folder);
    if (!entry->is_regular_file(error)) continue;
    num_bytes += entry->file_size(error);
    check_io(error, "read", folder);
  }
  return static_cast<std::int64_t>(num_bytes);
}

std::int64_t get_checkpoint_folder_size(const World& world,
                                        const std::string& save_dir,
                                        const std::string& tag) {
  const auto folder = (fs::path(save_dir) / tag).string();
  // The second number counts folders that could not be read, so that no rank
  // is left waiting for one that raised.
  const auto sums = at::zeros({2}, at::kLong);
  std::string reason = "another host could not read its folder " + folder;
  if (world.local_rank() == 0) {
    try {
      sums[0] = folder_size_bytes(folder);
    } catch (const IoError& error) {
      reason = message_of(error);
      sums[1] = 1;
    }
  }
  all_reduce(world.group(), sums).wait();
  NFOLD_CHECK_IO(sums[1].item<std::int64_t>() == 0, "[rank ", world.rank(),
                 "] checkpoint size: ", reason);
  return sums[0].item<std::int64_t>();
}

}  // namespace nfold
