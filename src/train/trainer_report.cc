#include "train/trainer_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "train/monitor/quantity.h"
#include "train/monitor/text_table.h"

namespace nfold::train {
namespace {

using Field = std::int64_t MemoryReport::*;

constexpr std::size_t kMaxRankColumns = 4;

struct Line {
  const char* name;
  std::function<std::int64_t(const MemoryReport&)> value;
};

std::function<std::int64_t(const MemoryReport&)> of(Field field) {
  return [field](const MemoryReport& report) { return report.*field; };
}

std::int64_t state_bytes(const MemoryReport& report) {
  return report.params_bytes + report.grads_bytes + report.optimizer_bytes;
}

}  // namespace

std::string memory_table(const std::vector<MemoryReport>& per_rank,
                         const MemoryReport& unsharded,
                         const std::string& unsharded_name) {
  const bool is_wide = per_rank.size() > kMaxRankColumns;
  std::vector<std::string> headers = {"memory"};
  if (is_wide) {
    headers.insert(headers.end(), {"smallest rank", "largest rank"});
  } else {
    for (std::size_t rank = 0; rank < per_rank.size(); ++rank) {
      headers.push_back(fmt::format("rank {}", rank));
    }
  }
  headers.push_back(unsharded_name);
  TextTable table(headers);
  auto add = [&](const Line& line, bool is_known_unsharded = true) {
    std::vector<std::int64_t> values;
    for (const auto& report : per_rank) values.push_back(line.value(report));
    if (is_wide) {
      const auto [least, most] =
          std::minmax_element(values.begin(), values.end());
      values = {*least, *most};
    }
    std::vector<std::string> cells = {line.name};
    for (const std::int64_t value : values) cells.push_back(bytes_text(value));
    cells.push_back(is_known_unsharded ? bytes_text(line.value(unsharded))
                                       : "-");
    table.add_row(cells);
  };
  add({"parameters", of(&MemoryReport::params_bytes)});
  add({"gradients", of(&MemoryReport::grads_bytes)});
  add({"optimizer state", of(&MemoryReport::optimizer_bytes)});
  table.add_line();
  add({"sum", state_bytes});
  add({"bucket peak", of(&MemoryReport::bucket_peak_bytes)});
  add({"gathered peak", of(&MemoryReport::gathered_peak_bytes)});
  add({"process, peak", of(&MemoryReport::peak_rss_bytes)},
      /*is_known_unsharded=*/false);
  return table.text();
}

std::string comm_table(const CommCounts& counts, std::int64_t num_steps) {
  TextTable table({"sent per rank", "calls", "bytes", "bytes per step"});
  for (int i = 0; i < kNumCollectives; ++i) {
    const CommCount& count = counts[static_cast<std::size_t>(i)];
    if (count.calls == 0) continue;
    table.add_row(
        {name_of(static_cast<Collective>(i)), fmt::to_string(count.calls),
         bytes_text(count.bytes),
         bytes_text(count.bytes / std::max<std::int64_t>(num_steps, 1))});
  }
  return table.text();
}

MemoryReport largest_of(const std::vector<MemoryReport>& per_rank) {
  MemoryReport result;
  for (const MemoryReport& report : per_rank) {
    for (const Field field :
         {&MemoryReport::params_bytes, &MemoryReport::grads_bytes,
          &MemoryReport::optimizer_bytes, &MemoryReport::bucket_peak_bytes,
          &MemoryReport::gathered_peak_bytes, &MemoryReport::peak_rss_bytes}) {
      result.*field = std::max(result.*field, report.*field);
    }
  }
  return result;
}

}  // namespace nfold::train
