// File: nfold/torch_version.h
//
// Whether the torch that nfold was built with is within a window of versions.
//
//   if (nfold::required_torch_version({.min = "2.12"})) ...
//
// Only the release numbers count: "2.13.0a0+git1" is 2.13.0, and what is
// missing is zero. Pure functions.
#pragma once

#include <string>

namespace nfold {

// Both ends belong to it. Empty: unbounded on that side.
struct TorchVersionWindow {
  std::string min{};
  std::string max{};
};

// Raises c10::ValueError without any bound, and for one that is no version.
bool required_torch_version(const TorchVersionWindow& window);
// The same for a given version.
bool is_version_within(const std::string& version,
                       const TorchVersionWindow& window);

}  // namespace nfold
