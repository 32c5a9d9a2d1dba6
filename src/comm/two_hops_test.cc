#include "comm/two_hops.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

struct Grid {
  int nodes;
  int places;
};

// The groups of a rank's column and row, made by all ranks.
std::pair<std::unique_ptr<Group>, std::unique_ptr<Group>> hops_of(
    World& world, const Grid& grid) {
  std::unique_ptr<Group> inter;
  std::unique_ptr<Group> intra;
  for (int place = 0; place < grid.places; ++place) {
    std::vector<int> column;
    for (int node = 0; node < grid.nodes; ++node) {
      column.push_back(node * grid.places + place);
    }
    if (auto group = world.new_group("inter", column)) inter = std::move(group);
  }
  for (int node = 0; node < grid.nodes; ++node) {
    std::vector<int> row;
    for (int place = 0; place < grid.places; ++place) {
      row.push_back(node * grid.places + place);
    }
    if (auto group = world.new_group("intra", row)) intra = std::move(group);
  }
  return {std::move(inter), std::move(intra)};
}

TEST(TwoHops, GiveTheBytesOfOneAllGather) {
  for (const Grid grid : {Grid{1, 3}, Grid{2, 1}, Grid{2, 2}, Grid{3, 2},
                          Grid{2, 3}, Grid{4, 2}}) {
    const int size = grid.nodes * grid.places;
    run_ranks(size, [&](World& world) {
      const auto [inter, intra] = hops_of(world, grid);
      for (const auto dtype : {at::kFloat, at::kBFloat16}) {
        std::vector<at::Tensor> flat;
        for (const std::int64_t numel : {0, 1, 7, 1023}) {
          auto output = at::zeros({size * numel}, dtype);
          output.narrow(0, world.rank() * numel, numel)
              .copy_(at::arange(numel) + 100 * world.rank());
          flat.push_back(std::move(output));
        }
        std::vector<at::Tensor> hops;
        for (const auto& tensor : flat) hops.push_back(tensor.clone());
        all_gather_coalesced(world.group(), flat).wait();
        all_gather_two_hops(*inter, *intra, hops).wait();
        for (std::size_t i = 0; i < flat.size(); ++i) {
          EXPECT_TRUE(at::equal(flat[i], hops[i])) << size << " ranks, " << i;
        }
      }
    });
  }
}

// Of B bytes each rank sends B / places between nodes, less its own part.
TEST(TwoHops, SendLessBetweenNodesThanOneAllGather) {
  run_ranks(4, [](World& world) {
    const auto [inter, intra] = hops_of(world, {2, 2});
    const auto output = at::zeros({4 * 8}, at::kFloat);
    all_gather_two_hops(*inter, *intra, {output}).wait();
    const auto kind = static_cast<std::size_t>(Collective::kAllGather);
    EXPECT_EQ(inter->counts()[kind].bytes, 8 * 4);
    EXPECT_EQ(intra->counts()[kind].bytes, 2 * 8 * 4);
  });
}

TEST(TwoHops, ShardsThatAreNotEqualAreAnError) {
  run_ranks(2, [](World& world) {
    const auto [inter, intra] = hops_of(world, {2, 1});
    const auto text = text_of<c10::ValueError>(
        [&] { all_gather_two_hops(*inter, *intra, {at::zeros({3})}); });
    EXPECT_NE(text.find("2 x 1 equal shards but found 3"), std::string::npos)
        << text;
  });
}

}  // namespace
}  // namespace nfold
