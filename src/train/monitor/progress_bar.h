// File: progress_bar.h
//
// How far something has come, on standard error: one line that is drawn over
// on a terminal, plain lines now and then elsewhere (a log file, a job's
// output).
//
//   ProgressBar bar({.label = "train", .total = 300});
//   bar.update(step, fmt::format("loss {:.4f}  {} tok/s", loss, speed));
//   bar.finish();
//
//   train  [=========>          ]  46%  138/300  loss 4.1267  8.9 k tok/s
//   2:31 left      (on one line)
//
// The line is cut to the width of the terminal: first the bar shrinks, then
// the end is left out. Time left is reckoned from the pace of late.
//
// Drawing needs one process: make it on rank 0 only. Not thread-safe.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace nfold::train {

// Where the bar is drawn and what time it is; the default is standard error
// and the steady clock. Tests give their own.
struct ProgressDevice {
  std::function<void(std::string_view)> write;
  std::function<std::chrono::nanoseconds()> now;
  bool is_terminal = false;
  // Columns of the terminal, asked for before each line.
  std::function<std::size_t()> width;

  static ProgressDevice standard_error();
};

struct ProgressOptions {
  std::string label = {};
  std::int64_t total = 0;  // 0: not known
  // What was done before this run began, as after a resume: it counts for
  // the bar but not for the pace.
  std::int64_t start = 0;
  // Least time between two plain lines, and between two drawings.
  std::chrono::milliseconds plain_interval = std::chrono::seconds(10);
  std::chrono::milliseconds draw_interval = std::chrono::milliseconds(100);
};

class ProgressBar {
 public:
  explicit ProgressBar(
      ProgressOptions options,
      ProgressDevice device = ProgressDevice::standard_error());
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();  // clears the line if finish() was not called

  // `done` units of the total are done; `text` says what is worth knowing
  // beside. Shown if the last one is old enough.
  void update(std::int64_t done, std::string_view text = {});
  // Another task begins: the pace starts anew.
  void restart(std::string_view label, std::int64_t total);
  // Takes the line away, so that something else can be printed; the next
  // update draws it again.
  void clear();
  // Shows the last state and ends the line.
  void finish();

  // Seconds until the end at the pace of late; negative if not known.
  double seconds_left() const;

 private:
  struct Moment {
    std::chrono::nanoseconds time;
    std::int64_t done;
  };

  std::string line(std::size_t width) const;
  void show(bool is_last);

  ProgressOptions options_;
  ProgressDevice device_;
  std::int64_t done_ = 0;
  std::string text_;
  std::deque<Moment> moments_;  // of late, oldest first
  std::chrono::nanoseconds begin_{};
  std::chrono::nanoseconds last_shown_{};
  bool was_shown_ = false;
  bool is_drawn_ = false;  // the terminal's line holds the bar
  bool is_finished_ = false;
};

}  // namespace nfold::train
