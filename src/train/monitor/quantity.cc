#include "train/monitor/quantity.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace nfold::train {
namespace {

// Three significant digits.
std::string three_digits(double value) {
  const double size = std::abs(value);
  if (size < 9.995) return fmt::format("{:.2f}", value);
  if (size < 99.95) return fmt::format("{:.1f}", value);
  return fmt::format("{:.0f}", value);
}

template <std::size_t N>
std::string scaled(double value, double base,
                   const std::array<const char*, N>& units) {
  std::size_t unit = 0;
  value /= base;
  // 999.5 would be written as 1000.
  while (std::abs(value) >= std::min(base, 999.5) && unit + 1 < N) {
    value /= base;
    ++unit;
  }
  return three_digits(value) + " " + units[unit];
}

}  // namespace

std::string bytes_text(std::int64_t bytes) {
  if (std::abs(bytes) < 1024) return fmt::format("{} B", bytes);
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  return scaled(static_cast<double>(bytes), 1024, kUnits);
}

std::string count_text(double count) {
  if (!std::isfinite(count)) return "?";
  if (std::abs(count) < 9999.5) return fmt::format("{:.0f}", count);
  constexpr std::array kUnits = {"k", "M", "G", "T", "P"};
  return scaled(count, 1000, kUnits);
}

std::string duration_text(double seconds) {
  constexpr double kLongest = 1e10;  // some 300 years
  if (!(seconds >= 0) || seconds > kLongest) return "?";
  const auto total = static_cast<std::int64_t>(std::llround(seconds));
  const std::int64_t s = total % 60;
  const std::int64_t m = total / 60 % 60;
  const std::int64_t h = total / 3600 % 24;
  const std::int64_t days = total / 86400;
  if (days > 0) return fmt::format("{} d {:02}:{:02}", days, h, m);
  if (h > 0) return fmt::format("{}:{:02}:{:02}", h, m, s);
  if (m > 0) return fmt::format("{}:{:02}", m, s);
  return fmt::format("{} s", s);
}

}  // namespace nfold::train
