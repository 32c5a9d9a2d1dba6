#include "bench/rounds.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <chrono>

namespace nfold::bench {

Spread spread_of(std::vector<double> values) {
  TORCH_CHECK_VALUE(!values.empty(),
                    "spread_of: expected at least one value but found none");
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  const double median = values.size() % 2 == 1
                            ? values[middle]
                            : (values[middle - 1] + values[middle]) / 2;
  return {median, values.front(), values.back()};
}

Spread rate_of(double scale, const std::vector<double>& values) {
  std::vector<double> rates;
  rates.reserve(values.size());
  for (const double value : values) rates.push_back(scale / value);
  return spread_of(std::move(rates));
}

Spread ratio_of(const std::vector<double>& a, const std::vector<double>& b) {
  TORCH_CHECK_VALUE(a.size() == b.size(), "ratio_of: expected as many values ",
                    "on both sides but found ", a.size(), " and ", b.size());
  std::vector<double> ratios;
  ratios.reserve(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) ratios.push_back(a[i] / b[i]);
  return spread_of(std::move(ratios));
}

std::size_t item_at(std::size_t round, std::size_t turn,
                    std::size_t num_items) {
  return (round + turn) % num_items;
}

std::vector<std::vector<double>> time_in_turns(
    const std::vector<std::function<void()>>& runs, int num_rounds) {
  using Clock = std::chrono::steady_clock;
  const auto num_timed = static_cast<std::size_t>(num_rounds);
  std::vector<std::vector<double>> seconds(runs.size(),
                                           std::vector<double>(num_timed));
  for (const auto& run : runs) run();
  for (std::size_t round = 0; round < num_timed; ++round) {
    for (std::size_t turn = 0; turn < runs.size(); ++turn) {
      const std::size_t i = item_at(round, turn, runs.size());
      const auto start = Clock::now();
      runs[i]();
      seconds[i][round] =
          std::chrono::duration<double>(Clock::now() - start).count();
    }
  }
  return seconds;
}

}  // namespace nfold::bench
