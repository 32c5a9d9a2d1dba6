#include "nfold/rank_lists.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <utility>

#include "nfold/errors.h"

namespace nfold {
namespace {

// "data (3) * tensor (2)", for errors.
std::string product_text(const std::vector<MeshAxis>& axes) {
  std::string text;
  for (const auto& axis : axes) {
    text +=
        c10::str(text.empty() ? "" : " * ", axis.name, " (", axis.size, ")");
  }
  return text.empty() ? "no axes" : text;
}

// Divides instead of multiplying, which may overflow.
bool sizes_multiply_to(int world_size, const std::vector<MeshAxis>& axes) {
  int remaining = world_size;
  for (const auto& axis : axes) {
    if (remaining % axis.size != 0) return false;
    remaining /= axis.size;
  }
  return remaining == 1;
}

}  // namespace

RankList all_ranks(int world_size) {
  check_size(world_size, "world size");
  RankList ranks(world_size);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

RankList rank_list_of(const RankLists& lists, int rank) {
  for (const auto& list : lists) {
    if (std::find(list.begin(), list.end(), rank) != list.end()) return list;
  }
  TORCH_CHECK_VALUE(false, "expected rank ", rank, " in one of ", lists.size(),
                    " rank lists but found it in none; ask with a global rank "
                    "that takes part in them");
}

int source_rank(const RankLists& lists, int rank) {
  return rank_list_of(lists, rank).front();
}

std::vector<RankLists> mesh_rank_lists(int world_size,
                                       const std::vector<MeshAxis>& axes) {
  check_size(world_size, "world size");
  for (const auto& axis : axes) check_size(axis.size, axis.name);
  TORCH_CHECK_VALUE(sizes_multiply_to(world_size, axes),
                    "mesh: expected sizes that multiply to the world size ",
                    world_size, " but found ", product_text(axes),
                    "; change a size or start another number of ranks");
  std::vector<RankLists> lists;
  int stride = world_size;  // between neighbours on the axis
  for (const auto& axis : axes) {
    const int span = stride;
    stride /= axis.size;
    RankLists& of_axis = lists.emplace_back();
    for (int begin = 0; begin < world_size; begin += span) {
      for (int offset = 0; offset < stride; ++offset) {
        RankList& ranks = of_axis.emplace_back();
        for (int i = 0; i < axis.size; ++i) {
          ranks.push_back(begin + offset + i * stride);
        }
      }
    }
  }
  return lists;
}

TensorRankLists tensor_rank_lists(int world_size,
                                  const TensorDegrees& degrees) {
  check_size(world_size, "world size");
  check_divisible(world_size, degrees.tensor, "tensor size");
  const int data = degrees.data.value_or(world_size / degrees.tensor);
  auto lists = mesh_rank_lists(
      world_size, {{"data size", data}, {"tensor size", degrees.tensor}});
  return {.data = std::move(lists[0]), .tensor = std::move(lists[1])};
}

TensorRankLists clamped_tensor_rank_lists(int world_size, int tensor_size) {
  return tensor_rank_lists(world_size,
                           {.tensor = std::min(tensor_size, world_size)});
}

SequenceRankLists sequence_rank_lists(int world_size, int sequence_size) {
  TORCH_CHECK_VALUE(
      sequence_size >= 2, "sequence size: expected at least 2 but found ",
      sequence_size, "; without sequence parallelism use the data groups");
  const RankList world = all_ranks(world_size);
  return {.sequence = consecutive_blocks(world, sequence_size, "sequence size"),
          .sequence_data = {world}};
}

RankLists secondary_shard_rank_lists(const RankList& ranks,
                                     std::int64_t group_size) {
  const auto num_ranks = static_cast<std::int64_t>(ranks.size());
  return consecutive_blocks(ranks,
                            static_cast<int>(std::min(group_size, num_ranks)),
                            "secondary shard group size");
}

RankLists parameter_parallel_rank_lists(int world_size,
                                        std::optional<int> group_size) {
  return consecutive_blocks(all_ranks(world_size),
                            group_size.value_or(world_size),
                            "parameter-parallel size");
}

NodeRankLists all_to_all_rank_lists(int world_size, int devices_per_node) {
  check_size(devices_per_node, "devices per node");
  TORCH_CHECK_VALUE(
      world_size <= devices_per_node || world_size % devices_per_node == 0,
      "all-to-all groups: the world size ", world_size, " is not divisible by ",
      devices_per_node, ", the devices per node; use all devices of each node");
  return all_to_all_rank_lists(all_ranks(world_size), devices_per_node);
}

NodeRankLists all_to_all_rank_lists(const RankList& ranks,
                                    int devices_per_node) {
  check_size(devices_per_node, "devices per node");
  NodeRankLists lists;
  lists.intra_node = parts_by_node(ranks, devices_per_node);
  if (lists.intra_node.size() <= 1) return lists;
  const RankList& first = lists.intra_node.front();
  for (const auto& part : lists.intra_node) {
    TORCH_CHECK_VALUE(
        part.size() == first.size(), "all-to-all groups: expected a group of ",
        ranks.size(), " ranks to have equally many on each of its nodes of ",
        devices_per_node, " devices but found ", first.size(),
        " on the node of rank ", first.front(), " and ", part.size(),
        " on that of rank ", part.front(), "; use all devices of each node");
  }
  lists.inter_node = columns(lists.intra_node);
  return lists;
}

RankLists consecutive_blocks(const RankList& ranks, int size,
                             std::string_view name) {
  check_divisible(static_cast<std::int64_t>(ranks.size()), size, name);
  RankLists blocks;
  blocks.reserve(ranks.size() / size);
  for (auto begin = ranks.begin(); begin != ranks.end(); begin += size) {
    blocks.emplace_back(begin, begin + size);
  }
  return blocks;
}

RankLists columns(const RankLists& lists) {
  if (lists.empty()) return {};
  RankLists by_place(lists.front().size());
  for (const auto& list : lists) {
    TORCH_INTERNAL_ASSERT(list.size() == by_place.size(),
                          "columns: expected lists of ", by_place.size(),
                          " ranks but found one of ", list.size());
    for (std::size_t i = 0; i < list.size(); ++i) {
      by_place[i].push_back(list[i]);
    }
  }
  return by_place;
}

void append(RankLists& to, RankLists lists) {
  to.insert(to.end(), std::make_move_iterator(lists.begin()),
            std::make_move_iterator(lists.end()));
}

RankLists parts_by_node(const RankList& ranks, int devices_per_node) {
  RankLists parts;
  int last_node = -1;
  for (const int rank : ranks) {
    const int node = rank / devices_per_node;
    if (node != last_node) parts.emplace_back();
    parts.back().push_back(rank);
    last_node = node;
  }
  return parts;
}

void check_size(std::int64_t size, std::string_view name) {
  TORCH_CHECK_VALUE(size >= 1, name, ": expected at least 1 but found ", size);
}

void check_divisible(std::int64_t num_ranks, std::int64_t size,
                     std::string_view name) {
  check_size(size, name);
  TORCH_CHECK_VALUE(num_ranks % size == 0, name, ": ", num_ranks,
                    " is not divisible by ", size,
                    "; choose a size that divides the ", num_ranks, " ranks");
}

}  // namespace nfold
