#include "config/nearest_key.h"

#include <algorithm>
#include <cctype>
#include <limits>

namespace nfold {
namespace {

bool is_same_letter(char left, char right) {
  return std::tolower(static_cast<unsigned char>(left)) ==
         std::tolower(static_cast<unsigned char>(right));
}

}  // namespace

std::size_t edit_distance(std::string_view left, std::string_view right) {
  // Rows of the table for the last two prefixes of `left` and the current one.
  std::vector<std::size_t> before_last(right.size() + 1);
  std::vector<std::size_t> last(right.size() + 1);
  std::vector<std::size_t> row(right.size() + 1);
  for (std::size_t j = 0; j <= right.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= left.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= right.size(); ++j) {
      const bool same = is_same_letter(left[i - 1], right[j - 1]);
      row[j] = std::min(
          {last[j] + 1, row[j - 1] + 1, last[j - 1] + (same ? 0U : 1U)});
      if (i > 1 && j > 1 && is_same_letter(left[i - 1], right[j - 2]) &&
          is_same_letter(left[i - 2], right[j - 1])) {
        row[j] = std::min(row[j], before_last[j - 2] + 1);
      }
    }
    std::swap(before_last, last);
    std::swap(last, row);
  }
  return last[right.size()];
}

std::vector<std::string> nearest_keys(std::string_view key,
                                      std::span<const std::string> names) {
  std::size_t least = std::numeric_limits<std::size_t>::max();
  std::vector<std::string> nearest;
  for (const std::string& name : names) {
    const std::size_t distance = edit_distance(key, name);
    const std::size_t longest = std::max(key.size(), name.size());
    // One letter is no likeness to another.
    if (distance >= std::min(key.size(), name.size())) continue;
    if (distance > std::max<std::size_t>(1, longest / 3)) continue;
    if (distance > least) continue;
    if (distance < least) nearest.clear();
    least = distance;
    if (std::find(nearest.begin(), nearest.end(), name) == nearest.end()) {
      nearest.push_back(name);
    }
  }
  return nearest;
}

}  // namespace nfold
