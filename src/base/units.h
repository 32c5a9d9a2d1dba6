// File: units.h
//
// Quantities as people read them.
//
//   nfold::human_bytes(1'610'612'736)  "1.50 GiB"
//   nfold::human_count(10'312'000)     "10.3 M"
//
// Pure functions.
#pragma once

#include <cstdint>
#include <string>

namespace nfold {

// Binary units, three digits: "512 B", "1.50 KiB", "15.0 MiB", "150 GiB".
std::string human_bytes(std::int64_t num_bytes);

// Decimal units, three digits: "999", "1.50 k", "10.3 M", "2.00 B", "1.00 T".
std::string human_count(std::int64_t count);

}  // namespace nfold
