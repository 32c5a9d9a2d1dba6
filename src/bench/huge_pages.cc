#include "bench/huge_pages.h"

#include <fstream>
#include <string>

namespace nfold::bench {

std::int64_t huge_page_bytes() {
  constexpr std::int64_t kKib = 1024;
  std::ifstream rollup("/proc/self/smaps_rollup");
  std::int64_t num_bytes = -1;
  for (std::string word; rollup >> word;) {
    if (word != "AnonHugePages:" && word != "ShmemPmdMapped:") continue;
    std::int64_t num_kib = 0;
    rollup >> num_kib;
    num_bytes = (num_bytes < 0 ? 0 : num_bytes) + num_kib * kKib;
  }
  return num_bytes;
}

}  // namespace nfold::bench
