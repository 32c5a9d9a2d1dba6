// File: ignored_target.h
//
// The target of a token that counts for nothing in a loss.
#pragma once

#include <cstdint>

namespace nfold {

// What at::cross_entropy_loss leaves out by default.
inline constexpr std::int64_t kIgnoredTarget = -100;

}  // namespace nfold
