#include "train/files/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

constexpr std::size_t kBufferBytes = 256 * 1024;

const char* advice_for(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; free some space or choose another folder";
    case EACCES:
    case EPERM:
    case EROFS:
      return "; choose a folder that you may write to";
    default:
      return "";
  }
}

[[noreturn]] void raise_write_error(const std::filesystem::path& path,
                                    const char* action, std::uint64_t at) {
  const int error = errno;
  NFOLD_CHECK_IO(false, path.string(), ": could not ", action, " at byte ", at,
                 ": ", std::strerror(error), advice_for(error));
  std::abort();
}

}  // namespace

OutputFile::OutputFile(std::filesystem::path path, OpenMode mode)
    : path_(std::move(path)) {
  const int flags = O_WRONLY | O_CREAT | O_CLOEXEC |
                    (mode == OpenMode::kAppend ? O_APPEND : O_TRUNC);
  descriptor_ = ::open(path_.c_str(), flags, 0644);
  if (descriptor_ < 0) {
    const int error = errno;
    NFOLD_CHECK_IO(false, path_.string(),
                   ": could not create the file: ", std::strerror(error),
                   advice_for(error));
  }
  if (mode == OpenMode::kAppend) {
    const off_t end = ::lseek(descriptor_, 0, SEEK_END);
    size_bytes_ = end > 0 ? static_cast<std::uint64_t>(end) : 0;
  }
}

OutputFile::~OutputFile() {
  if (descriptor_ < 0) return;
  try {
    flush();
  } catch (const c10::Error&) {
    // The owner is being destroyed by an error already, or did not ask.
  }
  if (descriptor_ >= 0) ::close(descriptor_);
}

void OutputFile::write(std::string_view bytes) {
  TORCH_INTERNAL_ASSERT(descriptor_ >= 0, path_.string(), " is closed");
  size_bytes_ += bytes.size();
  if (buffer_.size() + bytes.size() < kBufferBytes) {
    buffer_.append(bytes);
    return;
  }
  write_now(std::exchange(buffer_, {}));
  write_now(bytes);
}

void OutputFile::flush() {
  if (!buffer_.empty()) write_now(std::exchange(buffer_, {}));
}

void OutputFile::rewrite(std::uint64_t offset, std::string_view bytes) {
  flush();
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(descriptor_, bytes.data(), bytes.size(),
                                   static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) raise_write_error(path_, "write", offset);
    bytes.remove_prefix(static_cast<std::size_t>(count));
    offset += static_cast<std::uint64_t>(count);
  }
}

void OutputFile::close(Sync sync) {
  if (descriptor_ < 0) return;
  flush();
  if (sync == Sync::kYes && ::fsync(descriptor_) != 0 && errno != EINVAL) {
    raise_write_error(path_, "sync", size_bytes_);
  }
  // Network file systems report a full disk as late as here.
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    raise_write_error(path_, "close", size_bytes_);
  }
}

void OutputFile::write_now(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      raise_write_error(path_, "write", size_bytes_ - bytes.size());
    }
    bytes.remove_prefix(static_cast<std::size_t>(count));
  }
}

void write_file_atomically(const std::filesystem::path& path,
                           std::string_view content) {
  std::filesystem::path temporary = path;
  temporary += ".tmp-" + std::to_string(::getpid());
  std::error_code error;
  try {
    OutputFile file(temporary);
    file.write(content);
    file.close(Sync::kYes);
  } catch (...) {
    std::filesystem::remove(temporary, error);
    throw;
  }
  std::filesystem::rename(temporary, path, error);
  if (error) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    NFOLD_CHECK_IO(false, path.string(),
                   ": could not replace the file: ", error.message());
  }
}

}  // namespace nfold::train
