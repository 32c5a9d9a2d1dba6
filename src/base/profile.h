// File: profile.h
//
// Named time ranges, written as a Chrome trace that Perfetto
// (https://ui.perfetto.dev) and chrome://tracing open.
//
//   nfold::start_profile();
//   {
//     const nfold::ProfileRange range("nfold::reduce_scatter");
//     ...
//   }
//   nfold::stop_profile();
//   nfold::write_chrome_trace("trace.rank0.json");
//
// While nothing is profiled a range costs one relaxed atomic load. Otherwise
// it costs two reads of the clock and an uncontended lock. Ranges of a thread
// nest, so they never overlap on its track. Each thread has its own track,
// also after it has ended.
//
// All functions may be called from any thread. What is recorded belongs to
// the process: ranks that are threads of one process share one trace, as
// separate processes of it.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nfold {

class ProfileRange {
 public:
  // `name` is kept as a pointer: pass a literal.
  explicit ProfileRange(const char* name) {
    if (is_on_.load(std::memory_order_relaxed)) begin(name);
  }
  ~ProfileRange() {
    if (name_ != nullptr) end();
  }
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;

 private:
  friend void start_profile();
  friend void stop_profile();
  friend bool is_profiling();

  void begin(const char* name);
  void end();

  static inline std::atomic<bool> is_on_{false};

  const char* name_ = nullptr;  // null: not recorded
  std::int64_t begin_ns_ = 0;
};

// Drops what was recorded before and records from now on.
void start_profile();
// What was recorded is kept until the next start_profile().
void stop_profile();
bool is_profiling();

// Names the calling thread's track. Without, it is "thread <number>".
void set_profile_thread_name(std::string_view name);

// Sum over all threads of the ranges of one name that have ended.
struct ProfileTotal {
  std::string name;
  std::int64_t calls = 0;
  double total_ms = 0;  // ranges inside of it included
};
// In order of decreasing time.
std::vector<ProfileTotal> profile_totals();

// Writes what has been recorded so far; a range that has not ended is left
// out. Each rank writes its own file. Raises nfold::IoError.
void write_chrome_trace(const std::string& path);

}  // namespace nfold
