#include "base/units.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

namespace nfold {
namespace {

// Three significant digits of `value` in the largest unit that leaves at
// least 1 of it.
template <std::size_t N>
std::string with_unit(std::int64_t value, double base,
                      const std::array<const char*, N>& units) {
  double scaled = static_cast<double>(value);
  std::size_t unit = 0;
  // The limit is where three digits would round up to the next unit.
  while (unit + 1 < N && std::abs(scaled) >= base - (unit == 0 ? 0 : 0.5)) {
    scaled /= base;
    ++unit;
  }
  if (unit == 0) return fmt::format("{}{}", value, units[0]);
  const double size = std::abs(scaled);
  const int digits = size < 9.995 ? 2 : size < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f}{}", scaled, digits, units[unit]);
}

}  // namespace

std::string human_bytes(std::int64_t num_bytes) {
  return with_unit<6>(num_bytes, 1024,
                      {" B", " KiB", " MiB", " GiB", " TiB", " PiB"});
}

std::string human_count(std::int64_t count) {
  return with_unit<5>(count, 1000, {"", " k", " M", " B", " T"});
}

}  // namespace nfold
