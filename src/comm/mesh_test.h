// File: mesh_test.h
//
// For the tests of Mesh.
//
//   expect_groups(4, config_of(R"("sequence_parallel_size": 2)"),
//                 {{"sequence_parallel", {{0, 1}, {2, 3}}}});
#pragma once

#include <ATen/ops/full.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "nfold/collectives.h"
#include "nfold/mesh.h"
#include "nfold/rank_lists.h"
#include "testing/raised_text.h"
#include "testing/scoped_node_size.h"
#include "testing/thread_world.h"

namespace nfold {

inline Config config_of(const std::string& fields) {
  return Config::from_json_text("{" + fields + "}");
}

// fields: of zero_optimization.
inline Config stage3(const std::string& fields, const std::string& more = "") {
  return config_of(R"("zero_optimization": {"stage": 3, )" + fields + "}" +
                   more);
}

using GroupLists = std::map<std::string, RankLists>;

// The mesh has these groups, this rank is in the one that the lists say, and
// the group reaches all of them.
inline void expect_in(const Mesh& mesh, const GroupLists& groups) {
  for (const auto& [name, lists] : groups) {
    Group* group = mesh.find(name);
    ASSERT_NE(group, nullptr) << name;
    const RankList ranks = rank_list_of(lists, mesh.rank());
    EXPECT_EQ(group->global_ranks(), ranks) << name;
    EXPECT_EQ(mesh.source_rank(name), ranks.front()) << name;
    auto sum = at::full({1}, static_cast<float>(mesh.rank()));
    all_reduce(*group, sum).wait();
    EXPECT_EQ(sum.item<float>(),
              std::accumulate(ranks.begin(), ranks.end(), 0.0F))
        << name;
  }
}

inline void expect_groups(
    int num_ranks, const Config& config, const GroupLists& groups,
    const std::function<void(Mesh&)>& more = [](Mesh& /*mesh*/) {}) {
  run_ranks(num_ranks, [&](World& world) {
    Mesh mesh(world, config);
    expect_in(mesh, groups);
    more(mesh);
  });
}

// On every rank; gives the text that rank 0 got.
inline std::string mesh_error(int num_ranks, const Config& config) {
  std::string text;
  run_ranks(num_ranks, [&](World& world) {
    const auto raised =
        text_of<c10::ValueError>([&] { Mesh mesh(world, config); });
    if (world.rank() == 0) text = raised;
    // No rank waits for a group that another has not made.
    Mesh mesh(world, Config());
    expect_in(mesh, {{"data_parallel", {all_ranks(num_ranks)}}});
  });
  return text;
}

}  // namespace nfold
