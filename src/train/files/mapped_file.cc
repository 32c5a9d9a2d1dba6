#include "train/files/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "nfold/errors.h"

namespace nfold::train {

MappedFile::MappedFile(std::filesystem::path path) : path_(std::move(path)) {
  const int descriptor = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  NFOLD_CHECK_IO(descriptor >= 0, path_.string(),
                 ": could not open the file: ", std::strerror(errno));
  struct stat status {};
  const bool is_plain =
      ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  if (!is_plain) ::close(descriptor);
  NFOLD_CHECK_IO(is_plain, path_.string(),
                 ": expected a file but found a folder or a device");
  size_ = static_cast<std::size_t>(status.st_size);
  void* data = nullptr;
  int error = 0;
  if (size_ > 0) {
    data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
    error = errno;
  }
  ::close(descriptor);
  NFOLD_CHECK_IO(data != MAP_FAILED, path_.string(), ": could not map ", size_,
                 " bytes: ", std::strerror(error));
  data_ = static_cast<const char*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), size_);
}

std::string read_file(const std::filesystem::path& path) {
  return std::string(MappedFile(path).bytes());
}

}  // namespace nfold::train
