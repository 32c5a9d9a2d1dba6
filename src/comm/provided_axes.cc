#include "comm/provided_axes.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/log.h"
#include "comm/rank_list_exchange.h"

namespace nfold {
namespace {

// The kinds of groups, in the order in which they are exchanged.
enum Kind : std::uint8_t {
  kData,
  kModel,
  kPipeline,
  kSequence,
  kSequenceWithData,
};
constexpr int kNumKinds = 5;
constexpr std::array<const char*, kNumKinds> kKindNames = {
    "data-parallel", "model-parallel", "pipeline-parallel", "sequence-parallel",
    "sequence-data-parallel"};

using Provided = std::array<Group*, kNumKinds>;
// By kind; empty where the provider has none.
using ProvidedLists = std::array<RankLists, kNumKinds>;

ProvidedLists exchange(const World& world, const Provided& groups) {
  std::vector<OwnGroup> own;
  for (const Kind kind :
       {kData, kModel, kPipeline, kSequence, kSequenceWithData}) {
    own.push_back({kKindNames[kind], groups[kind]});
  }
  auto exchanged = exchange_rank_lists(world, own);
  ProvidedLists lists;
  std::move(exchanged.begin(), exchanged.end(), lists.begin());
  return lists;
}

// By rank of the world, the list that has it.
std::vector<const RankList*> owners(const RankLists& lists, int world_size) {
  std::vector<const RankList*> by_rank(static_cast<std::size_t>(world_size));
  for (const auto& list : lists) {
    for (const int rank : list) by_rank[static_cast<std::size_t>(rank)] = &list;
  }
  return by_rank;
}

bool are_inside(const RankLists& inner, const RankLists& outer,
                int world_size) {
  const auto outer_of = owners(outer, world_size);
  return std::all_of(inner.begin(), inner.end(), [&](const RankList& list) {
    return std::all_of(list.begin(), list.end(), [&](int rank) {
      return outer_of[static_cast<std::size_t>(rank)] ==
             outer_of[static_cast<std::size_t>(list.front())];
    });
  });
}

void check_inside(const ProvidedLists& lists, Kind inner,
                  const RankLists& state_lists, int world_size) {
  TORCH_CHECK_VALUE(
      are_inside(lists[inner], state_lists, world_size),
      "group provider: expected each ", kKindNames[inner],
      " group inside of one group of the ranks over which state is sharded, "
      "which the sequence-data-parallel groups are; give those that join data "
      "and sequence groups");
}

// The ranks with the same place in their sequence groups.
RankLists derived_data_lists(const RankLists& sequence_lists,
                             const RankLists& state_lists, int world_size) {
  const auto sequence_of = owners(sequence_lists, world_size);
  RankLists data;
  for (const auto& ranks : state_lists) {
    RankLists rows;
    for (const int rank : ranks) {
      const RankList& row = *sequence_of[static_cast<std::size_t>(rank)];
      if (std::find(rows.begin(), rows.end(), row) == rows.end()) {
        rows.push_back(row);
      }
    }
    append(data, columns(rows));
  }
  return data;
}

// What the provider says counts; what it leaves unsaid is not made up.
// size: of the provider's groups, absent if it has none.
void compare_sizes(const char* key, std::int64_t configured,
                   std::optional<std::size_t> size, Kind kind) {
  TORCH_CHECK_VALUE(size || configured == 1, key,
                    ": expected 1, as the group provider has no ",
                    kKindNames[kind], " groups, but found ", configured,
                    "; let the provider give them");
  const auto provided = static_cast<std::int64_t>(size.value_or(1));
  if (configured == provided) return;
  log_warning(
      "{} is {}, but the group provider's {} groups have {} ranks, which "
      "counts",
      key, configured, kKindNames[kind], provided);
}

// Ranks of a group of this kind, which must be of one size; absent if there
// are none.
std::optional<std::size_t> size_of(const ProvidedLists& lists, Kind kind) {
  if (lists[kind].empty()) return std::nullopt;
  const auto size = lists[kind].front().size();
  for (const auto& list : lists[kind]) {
    TORCH_CHECK_VALUE(list.size() == size, "group provider: expected ",
                      kKindNames[kind], " groups of one size but found ", size,
                      " and ", list.size(), " ranks, those of ranks ",
                      lists[kind].front().front(), " and ", list.front());
  }
  return size;
}

void check_config(const ProvidedLists& lists, const RankLists& state_lists,
                  const Config& config) {
  // 1 is what is not set, and so contradicts nothing.
  if (config.sequence_parallel_size > 1) {
    compare_sizes("sequence_parallel_size", config.sequence_parallel_size,
                  size_of(lists, kSequence), kSequence);
  }
  if (config.tensor_parallel_size > 1) {
    compare_sizes("tensor_parallel_size", config.tensor_parallel_size,
                  size_of(lists, kModel), kModel);
  }
  if (config.data_parallel_size) {
    compare_sizes(
        "data_parallel_size", *config.data_parallel_size,
        state_lists.front().size() / size_of(lists, kSequence).value_or(1),
        kData);
  }
}

void check_state_sizes(const ProvidedLists& lists, const RankLists& state_lists,
                       std::size_t sequence_size) {
  const std::size_t data_size = *size_of(lists, kData);
  for (const auto& ranks : state_lists) {
    TORCH_CHECK_VALUE(
        ranks.size() == data_size * sequence_size,
        "group provider: the data-parallel size ", data_size,
        " * the sequence-parallel size ", sequence_size,
        " must be the size of the sequence-data-parallel groups, but that of "
        "rank ",
        ranks.front(), " has ", ranks.size());
  }
}

// Ranks of such a group hold different parts of the model, so no two of them
// may share state.
void check_apart(const ProvidedLists& lists, Kind kind,
                 const RankLists& state_lists, int world_size) {
  const auto state_of = owners(state_lists, world_size);
  for (const auto& ranks : lists[kind]) {
    std::set<const RankList*> seen;
    for (const int rank : ranks) {
      TORCH_CHECK_VALUE(
          seen.insert(state_of[static_cast<std::size_t>(rank)]).second,
          "group provider: expected the ranks of each ", kKindNames[kind],
          " group in different groups of the ranks over which state is "
          "sharded, but two of that of rank ",
          ranks.front(),
          " are in one; give data-parallel groups of ranks with the same part "
          "of the model");
    }
  }
}

// Where state is sharded and what splits a batch, and the groups of these that
// are left to be made. What is left out of sequence_data is data_parallel.
void add_state_groups(const ProvidedLists& lists, const Provided& groups,
                      int world_size, ProvidedAxes& axes) {
  Group* const joined = groups[kSequenceWithData];
  Group* const data = groups[kData];
  const auto sequence_size = size_of(lists, kSequence).value_or(1);
  axes.state_lists = joined != nullptr ? lists[kSequenceWithData]
                     : data != nullptr ? lists[kData]
                                       : RankLists{all_ranks(world_size)};
  check_inside(lists, kData, axes.state_lists, world_size);
  check_inside(lists, kSequence, axes.state_lists, world_size);
  if (joined != nullptr) axes.groups[kSequenceData] = joined;
  // Data groups of some libraries have the ranks of a sequence in them; those
  // are the ranks over which state is sharded, not those that split a batch.
  const bool holds_sequences =
      sequence_size > 1 &&
      are_inside(lists[kSequence], lists[kData], world_size);
  if (data != nullptr && !holds_sequences) {
    check_state_sizes(lists, axes.state_lists, sequence_size);
    axes.groups[kDataParallel] = data;
    return;
  }
  if (sequence_size == 1) {
    if (joined != nullptr) {
      axes.groups[kDataParallel] = joined;
    } else {
      axes.to_make.push_back({kDataParallel, axes.state_lists});
    }
    return;
  }
  if (joined == nullptr && data != nullptr) axes.groups[kSequenceData] = data;
  if (joined == nullptr && data == nullptr) {
    axes.to_make.push_back({kSequenceData, axes.state_lists});
  }
  axes.to_make.push_back(
      {kDataParallel,
       derived_data_lists(lists[kSequence], axes.state_lists, world_size)});
}

}  // namespace

ProvidedAxes provided_axes(const World& world, const Config& config,
                           const GroupProvider& provider) {
  const Provided groups = {
      provider.data_parallel_group(), provider.model_parallel_group(),
      provider.pipeline_parallel_group(), provider.sequence_parallel_group(),
      provider.sequence_data_parallel_group()};
  const ProvidedLists lists = exchange(world, groups);
  TORCH_CHECK_VALUE(groups[kData] != nullptr || groups[kSequence] != nullptr,
                    "group provider: expected data-parallel groups, or "
                    "sequence-parallel groups alone, but found neither");
  ProvidedAxes axes;
  const auto take = [&](const char* name, Kind kind) {
    if (groups[kind] != nullptr) axes.groups[name] = groups[kind];
  };
  take(kSequenceParallel, kSequence);
  take(kTensorParallel, kModel);
  take(kPipelineParallel, kPipeline);
  add_state_groups(lists, groups, world.size(), axes);
  check_apart(lists, kModel, axes.state_lists, world.size());
  check_apart(lists, kPipeline, axes.state_lists, world.size());
  check_config(lists, axes.state_lists, config);
  return axes;
}

}  // namespace nfold
