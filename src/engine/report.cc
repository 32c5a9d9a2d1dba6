#include "nfold/report.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/profile.h"
#include "base/units.h"

namespace nfold {

std::string memory_table(const MemoryReport& report) {
  const auto peak = report.peak_rss_bytes;
  std::string table;
  const auto add_line = [&](const char* owner, std::int64_t num_bytes) {
    const double percent = peak == 0 ? 0 : 100.0 * num_bytes / peak;
    table += fmt::format("{:<26}{:>10}{:>7.1f}%\n", owner,
                         human_bytes(num_bytes), percent);
  };
  const auto owned = report.params_bytes + report.grads_bytes +
                     report.optimizer_bytes + report.bucket_peak_bytes +
                     report.gathered_peak_bytes;
  add_line("parameters", report.params_bytes);
  add_line("gathered parameters, peak", report.gathered_peak_bytes);
  add_line("gradients, peak", report.grads_bytes);
  add_line("gradient buckets, peak", report.bucket_peak_bytes);
  add_line("optimizer state", report.optimizer_bytes);
  // Peaks need not coincide, so their sum may be more than was ever held.
  add_line("everything else", std::max<std::int64_t>(0, peak - owned));
  add_line("process, peak", peak);
  return table;
}

void write_trace(const std::string& path) { write_chrome_trace(path); }

}  // namespace nfold
