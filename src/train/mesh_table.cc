#include "train/mesh_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>
#include <vector>

#include "nfold/mesh.h"

namespace nfold::train {
namespace {

std::string shortened(const std::vector<std::string>& words,
                      std::size_t num_shown) {
  const std::span shown(words.data(), std::min(words.size(), num_shown));
  std::string text = fmt::format("{}", fmt::join(shown, " "));
  const auto num_left = words.size() - shown.size();
  return num_left == 0 ? text : fmt::format("{} ... {} more", text, num_left);
}

std::string text_of(const std::vector<std::vector<int>>& lists,
                    std::size_t num_shown) {
  std::vector<std::string> texts;
  texts.reserve(lists.size());
  for (const auto& ranks : lists) {
    std::vector<std::string> words;
    words.reserve(ranks.size());
    for (const int rank : ranks) words.push_back(std::to_string(rank));
    texts.push_back(fmt::format("[{}]", shortened(words, num_shown)));
  }
  return shortened(texts, num_shown);
}

}  // namespace

std::string format_mesh(const Config& config, const MeshTableOptions& options) {
  const int num_ranks = options.num_ranks;
  const std::vector<GroupPlan> plan = plan_mesh(
      config, num_ranks,
      options.ranks_per_node > 0 ? options.ranks_per_node : num_ranks);
  std::string text =
      fmt::format("{} ranks: {} data x {} sequence x {} tensor\n\n", num_ranks,
                  data_parallel_size_of(config, num_ranks),
                  config.sequence_parallel_size, config.tensor_parallel_size);
  std::size_t width = 0;
  for (const auto& group : plan) width = std::max(width, group.name.size());
  text += fmt::format("{:<{}}  groups of  ranks\n", "group", width);
  for (const auto& [name, lists] : plan) {
    if (lists.empty()) continue;
    text +=
        fmt::format("{:<{}}  {:>9}  {}\n", name, width, lists.front().size(),
                    text_of(lists, options.num_shown));
  }
  return text;
}

}  // namespace nfold::train
