// File: rounds.h
//
// Times several things turn by turn, so that a phase in which the machine is
// slow hits all of them, and what is said of the times.
//
//   const auto seconds = time_in_turns({copy, update}, 7);
//   const Spread time = spread_of(seconds[0]);
//   const Spread ratio = ratio_of(seconds[1], seconds[0]);  // round by round
//
// Pure functions but for time_in_turns. Callable from any thread.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace nfold::bench {

struct Spread {
  double median = 0;
  double min = 0;
  double max = 0;
};

// Raises c10::ValueError for no values.
Spread spread_of(std::vector<double> values);

// Of scale / value: bytes over seconds.
Spread rate_of(double scale, const std::vector<double>& values);

// Of a[i] / b[i]. Raises c10::ValueError for different numbers of values.
Spread ratio_of(const std::vector<double>& a, const std::vector<double>& b);

// The index that comes at `turn` of `round` when there are `num_items`: every
// round begins with another one.
std::size_t item_at(std::size_t round, std::size_t turn, std::size_t num_items);

// seconds[i][round] of runs[i]. Each runs once untimed first.
std::vector<std::vector<double>> time_in_turns(
    const std::vector<std::function<void()>>& runs, int num_rounds);

}  // namespace nfold::bench
