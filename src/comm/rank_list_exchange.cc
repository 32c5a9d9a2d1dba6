#include "comm/rank_list_exchange.h"

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>

#include "base/hash.h"
#include "comm/gather_table.h"

namespace nfold {
namespace {

// What a rank says of its group: enough to put the lists together.
struct Membership {
  std::int64_t source = kAbsent;
  std::int64_t place = kAbsent;  // kAbsent: no member of its own group
  std::int64_t hash = 0;         // of all ranks of the group

  static constexpr std::int64_t kAbsent = -1;
};
constexpr int kNumbers = 3;

std::int64_t hash_of(const RankList& ranks) {
  Hasher hasher;
  for (const int rank : ranks) hasher.add_number(rank);
  return static_cast<std::int64_t>(hasher.digest());
}

Membership membership_of(const Group* group, int rank) {
  if (group == nullptr) return {};
  const RankList& ranks = group->global_ranks();
  const auto self = std::find(ranks.begin(), ranks.end(), rank);
  return {
      .source = ranks.front(),
      .place = self == ranks.end() ? Membership::kAbsent : self - ranks.begin(),
      .hash = hash_of(ranks)};
}

// Of one kind, by rank.
RankLists joined_lists(const std::vector<Membership>& members,
                       const char* kind) {
  const auto is_given = [](const Membership& member) {
    return member.source != Membership::kAbsent;
  };
  std::map<std::int64_t, std::map<std::int64_t, int>> by_source;
  for (std::size_t rank = 0; rank < members.size(); ++rank) {
    const Membership& member = members[rank];
    TORCH_CHECK_VALUE(is_given(member) == is_given(members[0]),
                      "group provider: expected the same kinds of groups on "
                      "every rank, but of ranks 0 and ",
                      rank, " only one has a ", kind, " group");
    if (!is_given(member)) continue;
    TORCH_CHECK_VALUE(member.place != Membership::kAbsent,
                      "group provider: expected rank ", rank, " in its ", kind,
                      " group, which begins with rank ", member.source,
                      ", but found it is not");
    by_source[member.source][member.place] = static_cast<int>(rank);
  }
  RankLists lists;
  for (const auto& [source, places] : by_source) {
    RankList& list = lists.emplace_back();
    for (const auto& [place, rank] : places) list.push_back(rank);
    const auto hash = hash_of(list);
    for (const int rank : list) {
      TORCH_CHECK_VALUE(
          members[static_cast<std::size_t>(rank)].hash == hash,
          "group provider: the ranks of the ", kind,
          " group that begins with rank ", source,
          " disagree about its ranks; those that name it as theirs are ",
          fmt::format("[{}]", fmt::join(list, ", ")),
          ". A rank must be in one group of a kind, the same on each of its "
          "ranks");
    }
  }
  return lists;
}

}  // namespace

std::vector<RankLists> exchange_rank_lists(const World& world,
                                           const std::vector<OwnGroup>& own) {
  std::vector<std::int64_t> numbers;
  for (const OwnGroup& of_kind : own) {
    const Membership member = membership_of(of_kind.group, world.rank());
    numbers.insert(numbers.end(), {member.source, member.place, member.hash});
  }
  const auto table = gather_table(world.group(), numbers);
  const auto cells = table.accessor<std::int64_t, 2>();
  std::vector<RankLists> lists;
  for (std::size_t kind = 0; kind < own.size(); ++kind) {
    const auto first = static_cast<std::int64_t>(kind) * kNumbers;
    std::vector<Membership> members;
    for (int rank = 0; rank < world.size(); ++rank) {
      const auto& of_rank = cells[rank];
      members.push_back({.source = of_rank[first],
                         .place = of_rank[first + 1],
                         .hash = of_rank[first + 2]});
    }
    lists.push_back(joined_lists(members, own[kind].kind));
  }
  return lists;
}

}  // namespace nfold
