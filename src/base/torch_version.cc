#include "nfold/torch_version.h"

#include <torch/version.h>

#include <charconv>
#include <vector>

#include "nfold/errors.h"

namespace nfold {
namespace {

// {2, 13} for "2.13.0a0+git1": without zeros at the end.
std::vector<int> release_of(const std::string& version) {
  std::vector<int> release;
  const char* position = version.data();
  const char* const end = version.data() + version.size();
  while (true) {
    int number = 0;
    const auto [after, error] = std::from_chars(position, end, number);
    TORCH_CHECK_VALUE(error == std::errc() && number >= 0,
                      "torch version: expected numbers with dots between, such "
                      "as 2.13.0, but found '",
                      version, "'");
    release.push_back(number);
    if (after == end || *after != '.') break;
    position = after + 1;
    // In "2.13.0.dev5" the release ends here.
    if (position != end && *position == 'd') break;
  }
  while (!release.empty() && release.back() == 0) release.pop_back();
  return release;
}

}  // namespace

bool is_version_within(const std::string& version,
                       const TorchVersionWindow& window) {
  TORCH_CHECK_VALUE(!window.min.empty() || !window.max.empty(),
                    "torch version: expected a least or a greatest version but "
                    "found neither");
  const auto release = release_of(version);
  return (window.min.empty() || release_of(window.min) <= release) &&
         (window.max.empty() || release <= release_of(window.max));
}

bool required_torch_version(const TorchVersionWindow& window) {
  return is_version_within(TORCH_VERSION, window);
}

}  // namespace nfold
