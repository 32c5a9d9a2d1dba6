#include "train/bench_table.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "train/monitor/quantity.h"
#include "train/monitor/text_table.h"

namespace nfold::train {
namespace {

using bench::CollectiveRow;
using bench::KernelRow;
using bench::OptimizerBench;
using bench::Spread;
using OrderedJson = nlohmann::ordered_json;

std::string range_text(const Spread& spread) {
  return fmt::format("{:.1f}-{:.1f}", spread.min, spread.max);
}

OrderedJson json_of(const Spread& spread) {
  return {{"median", spread.median}, {"min", spread.min}, {"max", spread.max}};
}

std::string count_of(int number, const char* word) {
  return fmt::format("{} {}{}", number, word, number == 1 ? "" : "s");
}

std::string huge_page_text(const OptimizerBench& bench) {
  if (bench.huge_page_bytes < 0) return "huge pages unknown";
  return fmt::format("{} in huge pages", bytes_text(bench.huge_page_bytes));
}

// 64 KiB, 1 MiB, or bytes where neither is whole.
std::string size_text(std::int64_t num_bytes) {
  constexpr std::int64_t kKib = 1 << 10;
  constexpr std::int64_t kMib = 1 << 20;
  if (num_bytes % kMib == 0) return fmt::format("{} MiB", num_bytes / kMib);
  if (num_bytes % kKib == 0) return fmt::format("{} KiB", num_bytes / kKib);
  return fmt::format("{} B", num_bytes);
}

}  // namespace

std::string format_bench(const OptimizerBench& bench) {
  std::string text = fmt::format(
      "{} fp32 elements, {}, {}, buffers of {} with {}\n"
      "median of {} (smallest to largest); GB/s of bytes read and written\n\n",
      bench.numel, count_of(bench.num_threads, "thread"), bench.simd,
      bytes_text(bench.buffer_bytes), huge_page_text(bench),
      count_of(bench.num_rounds, "round"));
  TextTable table(
      {"", "bytes/element", "ms", "GB/s", "spread", "x plain loop", "x copy"});
  bool was_yardstick = true;
  for (const KernelRow& row : bench.rows) {
    if (was_yardstick && !row.is_yardstick) table.add_line();
    was_yardstick = row.is_yardstick;
    table.add_row({row.name, fmt::format("{}", row.bytes.total()),
                   fmt::format("{:.2f}", row.seconds.median * 1e3),
                   fmt::format("{:.1f}", row.gb_per_second.median),
                   range_text(row.gb_per_second),
                   row.is_yardstick
                       ? ""
                       : fmt::format("{:.2f}", row.by_plain_loop.median),
                   fmt::format("{:.2f}", row.by_copy.median)});
  }
  return text + table.text();
}

std::string bench_json(const OptimizerBench& bench) {
  OrderedJson json = {{"numel", bench.numel},
                      {"threads", bench.num_threads},
                      {"rounds", bench.num_rounds},
                      {"simd", bench.simd},
                      {"buffer_bytes", bench.buffer_bytes},
                      {"huge_page_bytes", bench.huge_page_bytes}};
  for (const KernelRow& row : bench.rows) {
    json["rows"].push_back({{"name", row.name},
                            {"is_yardstick", row.is_yardstick},
                            {"bytes_read", row.bytes.read},
                            {"bytes_written", row.bytes.written},
                            {"seconds", json_of(row.seconds)},
                            {"gb_per_second", json_of(row.gb_per_second)},
                            {"by_plain_loop", json_of(row.by_plain_loop)},
                            {"by_copy", json_of(row.by_copy)}});
  }
  return json.dump(1) + "\n";
}

std::string format_bench(const std::vector<CollectiveRow>& rows,
                         const CollectivesAbout& about) {
  std::string text = fmt::format(
      "{} x {}, fp32, median of {} (smallest to largest)\n"
      "GB/s of bytes that a rank sends, by the slowest rank; copy: all ranks "
      "at a time, bytes counted once\n\n",
      count_of(about.num_ranks, "rank"), count_of(about.num_threads, "thread"),
      count_of(about.num_rounds, "round"));
  TextTable table(
      {"", "size", "transport", "ms", "GB/s", "spread", "copy GB/s", "x copy"});
  std::int64_t last_size = rows.empty() ? 0 : rows.front().size_bytes;
  for (const CollectiveRow& row : rows) {
    if (row.size_bytes != last_size) table.add_line();
    last_size = row.size_bytes;
    table.add_row({name_of(row.collective), size_text(row.size_bytes),
                   row.transport,
                   fmt::format("{:.3f}", row.seconds.median * 1e3),
                   fmt::format("{:.2f}", row.gb_per_second.median),
                   fmt::format("{:.2f}-{:.2f}", row.gb_per_second.min,
                               row.gb_per_second.max),
                   fmt::format("{:.1f}", row.copy_gb_per_second.median),
                   fmt::format("{:.2f}", row.by_copy.median)});
  }
  return text + table.text();
}

std::string bench_json(const std::vector<CollectiveRow>& rows,
                       const CollectivesAbout& about) {
  OrderedJson json = {{"ranks", about.num_ranks},
                      {"threads", about.num_threads},
                      {"rounds", about.num_rounds}};
  for (const CollectiveRow& row : rows) {
    json["rows"].push_back(
        {{"collective", name_of(row.collective)},
         {"transport", row.transport},
         {"size_bytes", row.size_bytes},
         {"moved_bytes", row.moved_bytes},
         {"seconds", json_of(row.seconds)},
         {"gb_per_second", json_of(row.gb_per_second)},
         {"copy_gb_per_second", json_of(row.copy_gb_per_second)},
         {"by_copy", json_of(row.by_copy)}});
  }
  return json.dump(1) + "\n";
}

}  // namespace nfold::train
