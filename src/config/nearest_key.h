// File: nearest_key.h
//
// Which known names a misspelt one may stand for.
//
//   nearest_keys("stge", {"stage", "ratio"});        // {"stage"}
//
// Pure functions.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nfold {

// Letters to insert, remove, replace or swap with their neighbour, without
// regard to case, to turn one text into the other.
std::size_t edit_distance(std::string_view left, std::string_view right);

// The names at the least distance, in order and each once; none if even they
// differ in more than a third of their letters.
std::vector<std::string> nearest_keys(std::string_view key,
                                      std::span<const std::string> names);

}  // namespace nfold
