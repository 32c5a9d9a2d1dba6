// File: metrics_log.h
//
// metrics.jsonl: one JSON object per line and step, complete lines only, on
// disk as soon as they are written.
//
//   MetricsLog log(run_dir / "metrics.jsonl");
//   log.write(metrics);
//
// {"step":7,"loss":4.12674093,"grad_norm":1.5,...,"memory":{"params_bytes":..},
//  "comm":{"all_gather":{"calls":1,"bytes":20971520},...}}
//
// loss, val_loss and grad_norm have 9 digits, so that equal lines mean equal
// fp32 bits; what is not finite is null. `val_loss` is there only at steps that
// were validated.
//
// Rank 0 writes. Not thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "train/files/output_file.h"
#include "train/monitor/step_metrics.h"

namespace nfold::train {

class MetricsLog {
 public:
  // Starts the file anew; or, with `resume_after_step`, keeps the lines up to
  // that step and drops those behind, which the resumed run writes again, and
  // a line that a crash left unfinished. Raises IoError if it cannot.
  explicit MetricsLog(const std::filesystem::path& path,
                      std::optional<std::int64_t> resume_after_step = {});

  // Raises IoError with the path, as when the disk is full.
  void write(const StepMetrics& metrics);

 private:
  OutputFile file_;
};

// The line, without the newline.
std::string metrics_json(const StepMetrics& metrics);

}  // namespace nfold::train
