#include "nfold/memory_usage.h"

#include <algorithm>
#include <fstream>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "base/process_memory.h"
#include "nfold/host_memory.h"

namespace nfold {
namespace {

constexpr double kGiB = 1 << 30;

// What earlier calls saw.
struct Seen {
  std::mutex mutex;
  std::int64_t max_cached_bytes = 0;
  MemoryUsage previous;  // of memory_status
};

Seen& seen() {
  static Seen seen;
  return seen;
}

void read_host_memory(MemoryUsage& usage) {
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::string unit;
  std::int64_t kib = 0;
  std::int64_t available_bytes = 0;
  while (file >> key >> kib && std::getline(file, unit)) {
    if (key == "MemTotal:") usage.host_total_bytes = kib * 1024;
    if (key == "MemAvailable:") available_bytes = kib * 1024;
  }
  usage.host_used_bytes = usage.host_total_bytes - available_bytes;
}

}  // namespace

MemoryUsage memory_usage() {
  MemoryUsage usage;
  const auto process = process_memory();
  usage.allocated_bytes = process.rss_bytes;
  usage.max_allocated_bytes = process.peak_rss_bytes;
  usage.cached_bytes = host_memory_stats().resident_bytes;
  read_host_memory(usage);
  auto& earlier = seen();
  const std::lock_guard lock(earlier.mutex);
  earlier.max_cached_bytes =
      std::max(earlier.max_cached_bytes, usage.cached_bytes);
  usage.max_cached_bytes = earlier.max_cached_bytes;
  return usage;
}

bool reset_peak_memory() {
  auto& earlier = seen();
  const std::lock_guard lock(earlier.mutex);
  earlier.max_cached_bytes = 0;
  return reset_peak_rss();
}

void empty_cache() {
  release_host_cache();
  reset_peak_memory();
}

std::int64_t get_ma_status() {
  return log_rank().rank == 0 ? process_memory().rss_bytes : 0;
}

void memory_status(std::string_view message,
                   const MemoryStatusOptions& options) {
  if (options.print_rank != -1 && options.print_rank != log_rank().rank) {
    return;
  }
  if (options.reset_max) reset_peak_memory();
  const auto usage = memory_usage();
  MemoryUsage previous;
  {
    auto& earlier = seen();
    const std::lock_guard lock(earlier.mutex);
    previous = std::exchange(earlier.previous, usage);
  }
  if (is_logged(LogLevel::kInfo, /*every_rank=*/true)) {
    write_log_line(LogLevel::kInfo,
                   memory_status_text(message, usage, previous));
  }
}

void see_memory_usage(std::string_view message, bool force) {
  if (!force || log_rank().rank != 0) return;
  log_info("{}", memory_usage_text(message, memory_usage()));
  reset_peak_memory();
}

std::string memory_status_text(std::string_view message,
                               const MemoryUsage& usage,
                               const MemoryUsage& previous) {
  const auto part = [](const char* name, std::int64_t now, std::int64_t before,
                       std::int64_t max) {
    return fmt::format("{} {:.4f} GiB (delta {:.4f}, max {:.4f})", name,
                       now / kGiB, (now - before) / kGiB, max / kGiB);
  };
  return fmt::format("{}: {}, {}", message,
                     part("alloc", usage.allocated_bytes,
                          previous.allocated_bytes, usage.max_allocated_bytes),
                     part("cache", usage.cached_bytes, previous.cached_bytes,
                          usage.max_cached_bytes));
}

std::string memory_usage_text(std::string_view message,
                              const MemoryUsage& usage) {
  const double percent =
      usage.host_total_bytes == 0
          ? 0
          : 100.0 * usage.host_used_bytes / usage.host_total_bytes;
  return fmt::format(
      "{}: MA {:.2f} GiB, Max_MA {:.2f} GiB, CA {:.2f} GiB, Max_CA {:.2f} GiB, "
      "host used {:.2f} GiB ({:.1f}%)",
      message, usage.allocated_bytes / kGiB, usage.max_allocated_bytes / kGiB,
      usage.cached_bytes / kGiB, usage.max_cached_bytes / kGiB,
      usage.host_used_bytes / kGiB, percent);
}

}  // namespace nfold
