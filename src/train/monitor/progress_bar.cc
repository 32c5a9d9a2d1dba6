#include "train/monitor/progress_bar.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "train/monitor/quantity.h"
#include "train/monitor/text_table.h"

namespace nfold::train {
namespace {

constexpr std::size_t kWidestBar = 30;
constexpr std::size_t kNarrowestBar = 6;
constexpr std::size_t kMostMoments = 64;
constexpr const char* kEraseLine = "\r\x1b[K";

double seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

std::string bar_text(double fraction, std::size_t width) {
  const auto filled =
      static_cast<std::size_t>(fraction * static_cast<double>(width));
  std::string bar = "[" + std::string(filled, '=');
  if (filled < width) bar += ">" + std::string(width - filled - 1, ' ');
  return bar + "]";
}

}  // namespace

ProgressDevice ProgressDevice::standard_error() {
  ProgressDevice device;
  device.write = [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  };
  device.now = [] {
    return std::chrono::steady_clock::now().time_since_epoch();
  };
  const char* terminal = std::getenv("TERM");
  device.is_terminal = ::isatty(STDERR_FILENO) == 1 && terminal != nullptr &&
                       std::string_view(terminal) != "dumb";
  device.width = [] {
    constexpr std::size_t kUsualWidth = 80;
    struct winsize size {};
    const bool is_known =
        ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    return is_known ? static_cast<std::size_t>(size.ws_col) : kUsualWidth;
  };
  return device;
}

ProgressBar::ProgressBar(ProgressOptions options, ProgressDevice device)
    : options_(std::move(options)), device_(std::move(device)) {
  done_ = options_.start;
  begin_ = device_.now();
  moments_.push_back({begin_, done_});
}

ProgressBar::~ProgressBar() {
  if (!is_finished_) clear();
}

void ProgressBar::update(std::int64_t done, std::string_view text) {
  done_ = done;
  text_ = text;
  const std::chrono::nanoseconds now = device_.now();
  // Few moments that reach far back: with many short steps, every second one
  // is forgotten now and then.
  if (moments_.size() >= kMostMoments) moments_.pop_front();
  const auto least_gap = (now - begin_) / kMostMoments / 4;
  if (now - moments_.back().time >= least_gap) moments_.push_back({now, done});
  const auto interval = device_.is_terminal
                            ? std::chrono::nanoseconds(options_.draw_interval)
                            : std::chrono::nanoseconds(options_.plain_interval);
  if (was_shown_ && now - last_shown_ < interval) return;
  show(/*is_last=*/false);
}

void ProgressBar::restart(std::string_view label, std::int64_t total) {
  options_.label = label;
  options_.total = total;
  done_ = 0;
  text_.clear();
  begin_ = device_.now();
  moments_.assign(1, {begin_, 0});
  // Outside a terminal a short task is not worth a line.
  was_shown_ = !device_.is_terminal;
  last_shown_ = begin_;
}

void ProgressBar::clear() {
  if (is_drawn_) device_.write(kEraseLine);
  is_drawn_ = false;
}

void ProgressBar::finish() {
  if (is_finished_) return;
  show(/*is_last=*/true);
  is_finished_ = true;
}

double ProgressBar::seconds_left() const {
  const Moment& first = moments_.front();
  const Moment& last = moments_.back();
  const bool is_known =
      options_.total > 0 && last.done > first.done && last.time > first.time;
  if (!is_known) return -1;
  const double pace = static_cast<double>(last.done - first.done) /
                      seconds(last.time - first.time);
  return static_cast<double>(
             std::max<std::int64_t>(options_.total - done_, 0)) /
         pace;
}

std::string ProgressBar::line(std::size_t width) const {
  std::string tail;
  double fraction = 0;
  if (options_.total > 0) {
    fraction = std::clamp(
        static_cast<double>(done_) / static_cast<double>(options_.total), 0.0,
        1.0);
    tail = fmt::format("  {:3}%  {}/{}", static_cast<int>(fraction * 100),
                       done_, options_.total);
  } else {
    tail = fmt::format("  {}", done_);
  }
  if (!text_.empty()) tail += "  " + text_;
  const bool is_done = options_.total > 0 && done_ >= options_.total;
  if (is_done) {
    tail += "  " + duration_text(seconds(device_.now() - begin_));
  } else if (seconds_left() >= 0) {
    tail += "  " + duration_text(seconds_left()) + " left";
  }
  std::string text = options_.label;
  const std::size_t taken = width_of(text) + width_of(tail) + 4;
  const std::size_t room =
      std::min(width > taken ? width - taken : 0, kWidestBar);
  const bool has_bar =
      device_.is_terminal && options_.total > 0 && room >= kNarrowestBar;
  if (has_bar) text += "  " + bar_text(fraction, room);
  text += tail;
  return std::string(fit_to_width(text, width));
}

void ProgressBar::show(bool is_last) {
  was_shown_ = true;
  last_shown_ = device_.now();
  if (!device_.is_terminal) {
    constexpr std::size_t kAnyWidth = 1000;
    device_.write(line(kAnyWidth) + "\n");
    return;
  }
  // The last column is left free: a full line makes some terminals scroll.
  const std::size_t width = std::max<std::size_t>(device_.width(), 2) - 1;
  device_.write(kEraseLine + line(width) + (is_last ? "\n" : ""));
  is_drawn_ = !is_last;
}

}  // namespace nfold::train
