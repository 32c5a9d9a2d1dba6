// File: compensated_sum.h
//
// A sum of doubles that carries what each addition rounds away, so that its
// value is the exact sum rounded once: the same bits however the terms are
// ordered or grouped, but for a chance of about one in 2^50.
//
//   CompensatedSum sum;
//   for (double term : terms) sum.add(term);
//   sum.add(sum_of_another_rank);
//   std::sqrt(sum.value());
//
// Source: Knuth's TwoSum; Dekker's double-double.
#pragma once

#include <cmath>

namespace nfold::kernels {

struct CompensatedSum {
  double high = 0;
  double low = 0;  // what `high` lacks; without meaning if that is not finite

  void add(double term) {
    const double sum = high + term;
    const double part = sum - high;
    low += (high - (sum - part)) + (term - part);
    high = sum;
  }
  void add(const CompensatedSum& other) {
    add(other.high);
    low += other.low;
  }
  double value() const { return std::isfinite(high) ? high + low : high; }
};

}  // namespace nfold::kernels
