// File: nfold/memory_usage.h
//
// What the process and its host hold, as lines of the log.
//
//   nfold::see_memory_usage("after the model was built", /*force=*/true);
//
//   info [rank 0] after the model was built: MA 1.52 GiB, Max_MA 3.10 GiB,
//   CA 0.98 GiB, Max_CA 0.98 GiB, host used 7.41 GiB (31.4%)
//
// On the CPU, what is allocated (MA) is the resident memory of the process, and
// what is cached (CA) is what the cache of host_memory.h has from the system,
// in use or kept; 0 where there is no cache. Bytes by owner: memory_table of
// report.h. Callable from any thread. All figures are those of the process,
// so ranks that are threads of one process share them and their peaks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nfold {

struct MemoryUsage {
  std::int64_t allocated_bytes = 0;
  std::int64_t max_allocated_bytes = 0;  // since the last reset
  std::int64_t cached_bytes = 0;
  std::int64_t max_cached_bytes = 0;  // seen by a call since the last reset
  std::int64_t host_total_bytes = 0;
  std::int64_t host_used_bytes = 0;  // by all processes
};

// Linux only; zeros elsewhere.
MemoryUsage memory_usage();

// Lets both peaks start again from what is held now. False where the system
// does not allow it; then max_allocated_bytes stays that of the whole life.
bool reset_peak_memory();

// Gives what the cache keeps and nobody uses back to the system, and resets
// the peaks.
void empty_cache();

// Bytes allocated; 0 on every rank but the first.
std::int64_t get_ma_status();

struct MemoryStatusOptions {
  int print_rank = -1;     // -1: every rank
  bool reset_max = false;  // before reading
};

// Logs what is allocated and cached, its peaks, and the change since the last
// call, whichever rank of the process made it. Not collective.
void memory_status(std::string_view message,
                   const MemoryStatusOptions& options = {});

// Logs the same and the memory of the host on rank 0, then resets the peaks.
// Does nothing unless forced, so that calls may stay where they were of use.
void see_memory_usage(std::string_view message, bool force = false);

// What the two log.
std::string memory_status_text(std::string_view message,
                               const MemoryUsage& usage,
                               const MemoryUsage& previous);
std::string memory_usage_text(std::string_view message,
                              const MemoryUsage& usage);

}  // namespace nfold
