// File: event_writer.h
//
// Scalars for TensorBoard: an event file that `tensorboard --logdir` shows.
//
//   EventWriter events(run_dir);
//   events.add_scalar("Train/Samples/train_loss", loss, samples);
//   events.flush();
//
// The few protobuf fields that a scalar needs are encoded here by hand. Tags
// of training follow DeepSpeed: write_step_events.
//
// Rank 0 writes. Not thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "train/files/output_file.h"
#include "train/monitor/step_metrics.h"

namespace nfold::train {

class EventWriter {
 public:
  // Creates events.out.tfevents.<time>.<host>.<process> in the folder, which
  // must exist. Raises IoError if it cannot, here and below.
  explicit EventWriter(const std::filesystem::path& folder);

  // `wall_time` is in seconds since 1970; now if empty.
  void add_scalar(std::string_view tag, double value, std::int64_t step,
                  std::optional<double> wall_time = {});
  // Makes what was added visible to TensorBoard.
  void flush();

  const std::filesystem::path& path() const { return file_.path(); }

 private:
  void write_record(std::string_view event);

  OutputFile file_;
};

// The scalars of one step under DeepSpeed's tags, over samples, and flushes.
void write_step_events(const StepMetrics& metrics, EventWriter* writer);

// CRC-32C (Castagnoli), and as event files store it.
std::uint32_t crc32c(std::string_view bytes);
std::uint32_t masked_crc32c(std::string_view bytes);

}  // namespace nfold::train
