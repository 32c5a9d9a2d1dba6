#include "checkpoint/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "nfold/errors.h"

namespace nfold {
namespace {

// The kernel refuses larger single writes.
constexpr std::size_t kMaxWriteBytes = std::size_t{1} << 30;

}  // namespace

std::string error_text(int error) {
  return std::generic_category().message(error);
}

AtomicFile::AtomicFile(std::string path)
    : path_(std::move(path)),
      temporary_path_(path_ + ".tmp." + std::to_string(::getpid())) {
  descriptor_ = ::open(temporary_path_.c_str(),
                       O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  NFOLD_CHECK_IO(descriptor_ >= 0, path_, ": cannot be written (",
                 error_text(errno),
                 "). Does its folder exist, and may this user write to it?");
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!is_committed_) ::unlink(temporary_path_.c_str());
}

void AtomicFile::write(const void* data, std::size_t num_bytes) {
  const char* next = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t written =
        ::write(descriptor_, next, std::min(num_bytes, kMaxWriteBytes));
    if (written < 0 && errno == EINTR) continue;
    NFOLD_CHECK_IO(written > 0, path_, ": writing failed (", error_text(errno),
                   "). The file is as it was before; free space on the disk "
                   "and save again.");
    next += written;
    num_bytes -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  // A full disk may show only here.
  NFOLD_CHECK_IO(::fsync(descriptor_) == 0, path_,
                 ": flushing to the disk failed (", error_text(errno),
                 "). The file is as it was before.");
  const int close_result = ::close(std::exchange(descriptor_, -1));
  NFOLD_CHECK_IO(close_result == 0, path_, ": closing failed (",
                 error_text(errno), "). The file is as it was before.");
  NFOLD_CHECK_IO(std::rename(temporary_path_.c_str(), path_.c_str()) == 0,
                 path_, ": the complete file could not be renamed from ",
                 temporary_path_, " (", error_text(errno), ").");
  is_committed_ = true;
  // The rename itself lasts only once the folder is flushed. Some file systems
  // cannot do that; the content is safe either way.
  auto folder = std::filesystem::path(path_).parent_path();
  if (folder.empty()) folder = ".";
  const int folder_descriptor =
      ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder_descriptor >= 0) {
    ::fsync(folder_descriptor);
    ::close(folder_descriptor);
  }
}

}  // namespace nfold
