#include "base/process_memory.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace nfold {

ProcessMemory process_memory() {
  ProcessMemory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    std::istringstream words(line);
    std::string key;
    std::int64_t kib = 0;
    words >> key >> kib;
    if (key == "VmRSS:") memory.rss_bytes = kib * 1024;
    if (key == "VmHWM:") memory.peak_rss_bytes = kib * 1024;
  }
  // The kernel updates the peak only now and then.
  memory.peak_rss_bytes = std::max(memory.peak_rss_bytes, memory.rss_bytes);
  return memory;
}

bool reset_peak_rss() {
  std::ofstream clear("/proc/self/clear_refs");
  clear << "5" << std::flush;
  return clear.good();
}

}  // namespace nfold
