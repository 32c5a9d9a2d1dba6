#include "train/monitor/metrics_log.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "nfold/errors.h"
#include "train/files/mapped_file.h"

namespace nfold::train {
namespace {

// The names are part of the file format, whatever the code calls them.
struct CollectiveKey {
  Collective collective;
  const char* key;
};
constexpr std::array<CollectiveKey, 5> kCollectives = {{
    {Collective::kAllGather, "all_gather"},
    {Collective::kReduceScatter, "reduce_scatter"},
    {Collective::kAllReduce, "all_reduce"},
    {Collective::kAllToAll, "all_to_all"},
    {Collective::kBroadcast, "broadcast"},
}};

std::string exact(double value) {
  return std::isfinite(value) ? fmt::format("{:.9g}", value) : "null";
}

std::string rounded(double value) {
  return std::isfinite(value) ? fmt::format("{:.3f}", value) : "null";
}

// Bytes of the lines to keep: complete ones, up to the step.
std::size_t kept_size(std::string_view text, std::int64_t last_step) {
  std::size_t end = 0;
  while (true) {
    const std::size_t newline = text.find('\n', end);
    if (newline == std::string_view::npos) return end;
    const auto line = nlohmann::json::parse(text.substr(end, newline - end),
                                            nullptr, /*exceptions=*/false);
    const bool is_kept = line.is_object() && line.contains("step") &&
                         line["step"].is_number_integer() &&
                         line["step"].get<std::int64_t>() <= last_step;
    if (!is_kept) return end;
    end = newline + 1;
  }
}

OpenMode prepare(const std::filesystem::path& path,
                 std::optional<std::int64_t> resume_after_step) {
  std::error_code error;
  if (!resume_after_step || !std::filesystem::exists(path, error)) {
    return OpenMode::kReplace;
  }
  const std::size_t size =
      kept_size(MappedFile(path).bytes(), *resume_after_step);
  std::filesystem::resize_file(path, size, error);
  NFOLD_CHECK_IO(!error, path.string(),
                 ": could not drop the lines behind step ", *resume_after_step,
                 ": ", error.message());
  return OpenMode::kAppend;
}

}  // namespace

std::string metrics_json(const StepMetrics& metrics) {
  const StepReport& report = metrics.report;
  const MemoryReport& memory = report.memory;
  std::string json = fmt::format(
      R"({{"step":{},"loss":{},"grad_norm":{},"lr":{},"loss_scale":{},)"
      R"("skipped":{},"tokens":{},"tokens_per_second":{},"step_ms":{},)"
      R"("forward_ms":{},"backward_ms":{},"optimizer_ms":{},)"
      R"("comm_wait_ms":{},)",
      metrics.step, exact(metrics.loss), exact(report.grad_norm),
      exact(report.lr), exact(report.loss_scale), report.is_skipped,
      metrics.tokens, rounded(metrics.tokens_per_second),
      rounded(metrics.step_ms), rounded(report.forward_ms),
      rounded(report.backward_ms), rounded(report.optimizer_ms),
      rounded(report.comm_wait_ms));
  if (metrics.val_loss) {
    json += fmt::format(R"("val_loss":{},)", exact(*metrics.val_loss));
  }
  if (metrics.mixture) {
    json += fmt::format(R"("aux_loss":{},"dropped_share":{},)",
                        exact(metrics.mixture->aux_loss),
                        exact(metrics.mixture->dropped_share));
  }
  json += fmt::format(
      R"("memory":{{"params_bytes":{},"grads_bytes":{},"optimizer_bytes":{},)"
      R"("bucket_peak_bytes":{},"gathered_peak_bytes":{},)"
      R"("peak_rss_bytes":{}}},"comm":{{)",
      memory.params_bytes, memory.grads_bytes, memory.optimizer_bytes,
      memory.bucket_peak_bytes, memory.gathered_peak_bytes,
      memory.peak_rss_bytes);
  bool is_first = true;
  for (const auto& [collective, key] : kCollectives) {
    const CommCount& count = report.comm[static_cast<std::size_t>(collective)];
    json += fmt::format(R"({}"{}":{{"calls":{},"bytes":{}}})",
                        is_first ? "" : ",", key, count.calls, count.bytes);
    is_first = false;
  }
  return json + "}}";
}

MetricsLog::MetricsLog(const std::filesystem::path& path,
                       std::optional<std::int64_t> resume_after_step)
    : file_(path, prepare(path, resume_after_step)) {}

void MetricsLog::write(const StepMetrics& metrics) {
  file_.write(metrics_json(metrics) + "\n");
  file_.flush();
}

}  // namespace nfold::train
