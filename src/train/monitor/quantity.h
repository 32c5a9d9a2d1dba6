// File: quantity.h
//
// Numbers as people read them.
//
//   bytes_text(1610612736)    "1.50 GiB"
//   count_text(10627584)      "10.6 M"
//   duration_text(192.4)      "3:12"
//
// Pure functions; callable from any thread.
#pragma once

#include <cstdint>
#include <string>

namespace nfold::train {

// B, KiB, MiB, GiB, TiB with three digits; whole below 1 KiB.
std::string bytes_text(std::int64_t bytes);

// Plain below 10,000, then k, M, G, T with three digits.
std::string count_text(double count);

// "12 s", "3:12", "1:02:03", "2 d 03:04"; "?" if not known (negative or not
// finite).
std::string duration_text(double seconds);

}  // namespace nfold::train
