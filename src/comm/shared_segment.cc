#include "comm/shared_segment.h"

#include <c10/util/Exception.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <random>
#include <utility>

namespace nfold {
namespace {

constexpr char kFolder[] = "/dev/shm";
constexpr char kPrefix[] = "nfold.";
// Names live for as long as ranks need to open them. In containers that share
// the folder but not process numbers, an old file is the only sign of a crash
// that can be trusted.
constexpr std::chrono::seconds kStaleAge{60};

std::string mib_text(std::int64_t num_bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(num_bytes) / (1 << 20));
}

std::string unique_name() {
  static thread_local std::random_device device;
  return fmt::format("{}{}.{}.{:08x}{:08x}", kPrefix, ::getuid(), ::getpid(),
                     device(), device());
}

std::string remedy() {
  return fmt::format(
      "Make it larger (docker run --shm-size=8g; mount -o "
      "remount,size=8g {}), or set NFOLD_TRANSPORT=gloo to do without",
      kFolder);
}

[[noreturn]] void raise_errno(const std::string& what, int error) {
  TORCH_CHECK(false, "shared memory: cannot ", what, ": ", std::strerror(error),
              ". Set NFOLD_TRANSPORT=gloo to do without");
}

// Closes the file descriptor; the mapping stays.
class OpenFile {
 public:
  explicit OpenFile(int file) : file_(file) {}
  ~OpenFile() { ::close(file_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int number() const { return file_; }

 private:
  const int file_;
};

void reserve(int file, std::size_t num_bytes) {
  int error = 0;
  do {
    error = ::posix_fallocate(file, 0, static_cast<off_t>(num_bytes));
  } while (error == EINTR);
  if (error == 0) return;
  if (error != ENOSPC) raise_errno("reserve " + mib_text(num_bytes), error);
  const SharedSpace space = shared_space();
  TORCH_CHECK_WITH(OutOfMemoryError, false, "shared memory: expected ",
                   mib_text(static_cast<std::int64_t>(num_bytes)), " free in ",
                   kFolder, " but found ", mib_text(space.free_bytes), " of ",
                   mib_text(space.total_bytes), ". ", remedy());
}

}  // namespace

SharedSegment SharedSegment::create(std::size_t num_bytes) {
  TORCH_INTERNAL_ASSERT(num_bytes > 0);
  SharedSegment segment;
  segment.name_ = unique_name();
  const int number = ::shm_open(("/" + segment.name_).c_str(),
                                O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (number < 0)
    raise_errno("create a file in " + std::string(kFolder), errno);
  segment.is_linked_ = true;
  const OpenFile file(number);
  reserve(number, num_bytes);
  segment.map(number, num_bytes);
  return segment;
}

SharedSegment SharedSegment::open(const std::string& name,
                                  std::size_t num_bytes) {
  SharedSegment segment;
  segment.name_ = name;
  const int number = ::shm_open(("/" + name).c_str(), O_RDWR | O_CLOEXEC, 0);
  if (number < 0) {
    raise_errno(fmt::format("open {}/{}, which another rank of this host made",
                            kFolder, name),
                errno);
  }
  const OpenFile file(number);
  struct stat info {};
  if (::fstat(number, &info) != 0) raise_errno("look at " + name, errno);
  TORCH_CHECK(info.st_size == static_cast<off_t>(num_bytes),
              "shared memory: ", name, " has ", info.st_size,
              " bytes but expected ", num_bytes);
  segment.map(number, num_bytes);
  return segment;
}

void SharedSegment::map(int file, std::size_t num_bytes) {
  void* mapped =
      ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) {
    raise_errno("map " + mib_text(static_cast<std::int64_t>(num_bytes)), errno);
  }
  // A wish: most kernels are set to small pages for shared memory.
  ::madvise(mapped, num_bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(mapped);
  num_bytes_ = num_bytes;
}

SharedSegment::SharedSegment(SharedSegment&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)),
      name_(std::move(other.name_)),
      is_linked_(std::exchange(other.is_linked_, false)) {}

SharedSegment& SharedSegment::operator=(SharedSegment&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  std::swap(name_, other.name_);
  std::swap(is_linked_, other.is_linked_);
  return *this;
}

SharedSegment::~SharedSegment() {
  unlink();
  if (data_ != nullptr) ::munmap(data_, num_bytes_);
}

void SharedSegment::unlink() noexcept {
  if (!is_linked_) return;
  ::shm_unlink(("/" + name_).c_str());
  is_linked_ = false;
}

SharedSpace shared_space() {
  struct statvfs info {};
  if (::statvfs(kFolder, &info) != 0) return {};
  const auto block = static_cast<std::int64_t>(info.f_frsize);
  return {static_cast<std::int64_t>(info.f_blocks) * block,
          static_cast<std::int64_t>(info.f_bavail) * block};
}

void check_shared_space(std::int64_t num_bytes, const std::string& purpose) {
  const SharedSpace space = shared_space();
  // A file system without a limit says zero.
  if (space.total_bytes == 0 || num_bytes <= space.free_bytes) return;
  TORCH_CHECK_WITH(OutOfMemoryError, false, "shared memory: ", purpose,
                   " take ", mib_text(num_bytes), " in ", kFolder,
                   ", of which ", mib_text(space.free_bytes), " of ",
                   mib_text(space.total_bytes), " are free. ", remedy());
}

int remove_stale_segments() noexcept {
  namespace fs = std::filesystem;
  int num_removed = 0;
  std::error_code error;
  const auto now = std::chrono::system_clock::now();
  for (const auto& entry : fs::directory_iterator(kFolder, error)) {
    const std::string name = entry.path().filename();
    int owner = 0;
    int pid = 0;
    struct stat info {};
    // NOLINTNEXTLINE(cert-err34-c): a name of another form does not match.
    if (std::sscanf(name.c_str(), "nfold.%d.%d.", &owner, &pid) != 2 ||
        ::stat(entry.path().c_str(), &info) != 0 || info.st_uid != ::getuid()) {
      continue;
    }
    const auto age =
        now - std::chrono::system_clock::from_time_t(info.st_mtim.tv_sec);
    const bool is_maker_gone = ::kill(pid, 0) != 0 && errno == ESRCH;
    if (!is_maker_gone || age < kStaleAge) continue;
    if (::shm_unlink(("/" + name).c_str()) == 0) ++num_removed;
  }
  return num_removed;
}

}  // namespace nfold
