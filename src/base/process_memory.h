// File: process_memory.h
//
// What the process really holds, as the kernel counts it.
//
//   nfold::reset_peak_rss();
//   ...
//   std::int64_t peak = nfold::process_memory().peak_rss_bytes;
//
// Callable from any thread. Linux only; zeros elsewhere.
#pragma once

#include <cstdint>

namespace nfold {

struct ProcessMemory {
  std::int64_t rss_bytes = 0;
  std::int64_t peak_rss_bytes = 0;
};

ProcessMemory process_memory();

// Makes the peak start again from what is resident now. False where the
// system does not allow it; then the peak stays that of the whole life.
bool reset_peak_rss();

}  // namespace nfold
