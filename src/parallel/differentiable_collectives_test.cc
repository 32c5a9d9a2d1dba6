#include "nfold/differentiable_collectives.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "nfold/activation_checkpoint.h"
#include "parallel/parallel_test.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

at::Tensor chunk_of(const at::Tensor& whole, const World& world,
                    std::int64_t dim) {
  return whole.chunk(world.size(), dim)[static_cast<std::size_t>(world.rank())];
}

at::Tensor leaf(const at::Tensor& values) {
  return values.detach().clone().requires_grad_();
}

at::Tensor sum_of_waves(const World& world, at::IntArrayRef sizes) {
  at::Tensor sum = at::zeros(sizes);
  for (int rank = 0; rank < world.size(); ++rank) sum += waves(sizes, rank);
  return sum;
}

// Every test below runs with 1, 2, 3 and 4 ranks.
class DifferentiableCollectives : public ::testing::TestWithParam<int> {
 protected:
  void on_ranks(const std::function<void(World&)>& body) {
    run_ranks(GetParam(), body);
  }
};
INSTANTIATE_TEST_SUITE_P(Ranks, DifferentiableCollectives,
                         ::testing::Values(1, 2, 3, 4));

TEST_P(DifferentiableCollectives, CopySumsTheGradientsOfAllRanks) {
  on_ranks([](World& world) {
    auto x = leaf(waves({3, 5}, 40));
    const auto y = copy_to_group(&world.group(), x);
    EXPECT_TRUE(at::equal(y, x));
    (y * waves({3, 5}, world.rank())).sum().backward();
    expect_close(x.grad(), sum_of_waves(world, {3, 5}));
  });
}

TEST_P(DifferentiableCollectives, ReduceSumsAndHandsTheGradientOn) {
  on_ranks([](World& world) {
    auto x = leaf(waves({3, 5}, world.rank()));
    const auto y = reduce_from_group(&world.group(), x);
    const auto sum = sum_of_waves(world, {3, 5});
    expect_close(y, sum);
    y.square().sum().backward();
    expect_close(x.grad(), 2 * sum);
  });
}

TEST_P(DifferentiableCollectives, SplitTakesAChunkAndGathersItsGradient) {
  on_ranks([](World& world) {
    const std::int64_t n = world.size();
    for (const std::int64_t dim : {0, 1, 2, -1}) {
      const auto whole = waves({2 * n, n, 3 * n}, 7);
      const auto weight = waves({2 * n, n, 3 * n}, 8);
      auto x = leaf(whole);
      const auto y = split_to_group(&world.group(), x, dim);
      EXPECT_TRUE(at::equal(y, chunk_of(whole, world, dim)));
      (y.square() * chunk_of(weight, world, dim)).sum().backward();
      expect_close(x.grad(), 2 * whole * weight);
    }
  });
}

TEST_P(DifferentiableCollectives, GatherJoinsAndKeepsItsChunkOfTheGradient) {
  on_ranks([](World& world) {
    const std::int64_t n = world.size();
    for (const std::int64_t dim : {0, 1, 2, -1}) {
      const auto whole = waves({2 * n, n, 3 * n}, 7);
      const auto weight = waves({2 * n, n, 3 * n}, 8);
      auto x = leaf(chunk_of(whole, world, dim));
      const auto y = gather_from_group(&world.group(), x, dim);
      EXPECT_TRUE(at::equal(y, whole));
      (y.square() * weight).sum().backward();
      expect_close(x.grad(), chunk_of(2 * whole * weight, world, dim));
    }
  });
}

TEST_P(DifferentiableCollectives, AllToAllOfRowsSendsChunkIToRankI) {
  on_ranks([](World& world) {
    const auto rows = world.size() * 2;
    auto x = leaf(waves({rows, 3}, world.rank()));
    const auto y = all_to_all(&world.group(), x);
    std::vector<at::Tensor> parts;
    for (int rank = 0; rank < world.size(); ++rank) {
      parts.push_back(chunk_of(waves({rows, 3}, rank), world, 0));
    }
    EXPECT_TRUE(at::equal(y, at::cat(parts)));
    // Weights that say which rank received the row, and where.
    (y * waves({rows, 3}, 100 + world.rank())).sum().backward();
    std::vector<at::Tensor> grads;
    for (int rank = 0; rank < world.size(); ++rank) {
      grads.push_back(chunk_of(waves({rows, 3}, 100 + rank), world, 0));
    }
    expect_close(x.grad(), at::cat(grads));
  });
}

TEST_P(DifferentiableCollectives, AllToAllMovesTheSplitToAnotherDimension) {
  on_ranks([](World& world) {
    const std::int64_t n = world.size();
    const std::vector<std::int64_t> sizes = {n, 2 * n, 3 * n, 5};
    const auto whole = waves(sizes, 3);
    const auto weight = waves(sizes, 4);
    for (std::int64_t from = 0; from < 3; ++from) {
      for (std::int64_t to = 0; to < 3; ++to) {
        if (from == to) continue;
        auto x = leaf(chunk_of(whole, world, from));
        const auto y = all_to_all(&world.group(), x, to, from);
        EXPECT_TRUE(at::equal(y, chunk_of(whole, world, to)))
            << from << " to " << to;
        (y.square() * chunk_of(weight, world, to)).sum().backward();
        expect_close(x.grad(), chunk_of(2 * whole * weight, world, from));
        // There and back again.
        EXPECT_TRUE(at::equal(all_to_all(&world.group(), y, from, to), x));
      }
    }
  });
}

TEST_P(DifferentiableCollectives, StridesOfTheInputDoNotMatter) {
  on_ranks([](World& world) {
    const std::int64_t n = world.size();
    Group* group = &world.group();
    const auto strided =
        waves({3, 2 * n, 2 * n}, world.rank()).permute({2, 1, 0});
    const auto dense = strided.contiguous();
    const auto expect_same = [&](const auto& function) {
      auto a = strided.detach().requires_grad_();
      auto b = leaf(dense);
      const auto y = function(a);
      EXPECT_TRUE(at::equal(y, function(b)));
      // A gradient with strides of zero.
      y.sum().backward();
      function(b).sum().backward();
      EXPECT_TRUE(at::equal(a.grad(), b.grad()));
    };
    expect_same([&](const at::Tensor& x) { return copy_to_group(group, x); });
    expect_same(
        [&](const at::Tensor& x) { return reduce_from_group(group, x); });
    expect_same(
        [&](const at::Tensor& x) { return split_to_group(group, x, 1); });
    expect_same(
        [&](const at::Tensor& x) { return gather_from_group(group, x, 2); });
    expect_same([&](const at::Tensor& x) { return all_to_all(group, x); });
    expect_same(
        [&](const at::Tensor& x) { return all_to_all(group, x, 1, 2); });
  });
}

// gelu(x A) B with A split by columns and B by rows.
at::Tensor split_mlp(Group* group, const at::Tensor& x, const at::Tensor& a,
                     const at::Tensor& b) {
  return reduce_from_group(
      group, at::matmul(at::gelu(at::matmul(copy_to_group(group, x), a)), b));
}

TEST_P(DifferentiableCollectives, TwoLayersAndTwoCallsEqualOneRank) {
  on_ranks([](World& world) {
    const std::int64_t inner = 4 * world.size();
    const auto x = waves({5, 6}, 1);
    const auto a = waves({6, inner}, 2);
    const auto b = waves({inner, 6}, 3);
    auto whole = std::vector<at::Tensor>{leaf(x), leaf(a), leaf(b)};
    auto parts = std::vector<at::Tensor>{leaf(x), leaf(chunk_of(a, world, 1)),
                                         leaf(chunk_of(b, world, 0))};
    const auto loss = [](Group* group, const std::vector<at::Tensor>& t) {
      const auto once = split_mlp(group, t[0], t[1], t[2]);
      return split_mlp(group, once, t[1], t[2]).square().sum();
    };
    const auto expected = loss(nullptr, whole);
    const auto found = loss(&world.group(), parts);
    expect_close(found, expected);
    expected.backward({}, /*retain_graph=*/true);
    found.backward({}, /*retain_graph=*/true);
    // The same graph once more: gradients double.
    expected.backward();
    found.backward();
    expect_close(parts[0].grad(), whole[0].grad());
    expect_close(parts[1].grad(), chunk_of(whole[1].grad(), world, 1));
    expect_close(parts[2].grad(), chunk_of(whole[2].grad(), world, 0));
  });
}

TEST_P(DifferentiableCollectives, InsideOfCheckpointChangeNoBit) {
  on_ranks([](World& world) {
    const std::int64_t n = world.size();
    Group* group = &world.group();
    const auto run = [&](bool is_checkpointed) {
      auto x = leaf(waves({2 * n, 6}, 1));
      auto a = leaf(waves({6, 4}, world.rank()));
      auto b = leaf(waves({4, 6}, 10 + world.rank()));
      const auto block = [&](const at::Tensor& input) {
        const auto h = split_mlp(group, all_to_all(group, input), a, b);
        return all_to_all(group, h.tanh()).square();
      };
      const auto y = is_checkpointed ? checkpoint(block, x) : block(x);
      (is_checkpointed ? checkpoint(block, y) : block(y)).sum().backward();
      return std::vector<at::Tensor>{y.detach(), x.grad(), a.grad(), b.grad()};
    };
    const auto plain = run(false);
    const auto before = group->counts();
    const auto dropped = run(true);
    for (std::size_t i = 0; i < plain.size(); ++i) {
      EXPECT_TRUE(at::equal(plain[i], dropped[i])) << i;
    }
    if (n == 1) return;
    // 2 blocks x 2 exchanges, in forward, in the second run and in backward.
    const auto index = static_cast<std::size_t>(Collective::kAllToAll);
    EXPECT_EQ(group->counts()[index].calls - before[index].calls, 2 * 6);
  });
}

TEST_P(DifferentiableCollectives, GradientsOfGradientsEqualOneRank) {
  on_ranks([](World& world) {
    const auto whole = waves({4 * world.size(), 2}, 5);
    const auto second = [&](Group* group, const at::Tensor& x) {
      const auto y = gather_from_group(group, x, 0).pow(3).sum();
      const auto grad =
          torch::autograd::grad({y}, {x}, {}, true, /*create_graph=*/true)[0];
      // A partial sum on each rank, so that the second graph communicates.
      const auto norm = reduce_from_group(group, grad.square().sum());
      return torch::autograd::grad({norm}, {x})[0];
    };
    auto x = leaf(chunk_of(whole, world, 0));
    expect_close(second(&world.group(), x),
                 chunk_of(second(nullptr, leaf(whole)), world, 0));
  });
}

TEST_P(DifferentiableCollectives, WithoutGradientsNothingIsRecorded) {
  on_ranks([](World& world) {
    const auto x = waves({2 * world.size(), 2}, world.rank());
    EXPECT_FALSE(all_to_all(&world.group(), x).requires_grad());
    at::NoGradGuard no_grad;
    const auto y = leaf(x) * 2;
    EXPECT_FALSE(reduce_from_group(&world.group(), y).requires_grad());
  });
}

TEST(DifferentiableCollective, OfOneRankReturnsItsInput) {
  run_ranks(1, [](World& world) {
    const auto x = leaf(waves({3}, 1));
    for (Group* group : {static_cast<Group*>(nullptr), &world.group()}) {
      EXPECT_TRUE(copy_to_group(group, x).is_same(x));
      EXPECT_TRUE(reduce_from_group(group, x).is_same(x));
      EXPECT_TRUE(split_to_group(group, x).is_same(x));
      EXPECT_TRUE(gather_from_group(group, x).is_same(x));
      EXPECT_TRUE(all_to_all(group, x).is_same(x));
    }
  });
}

TEST(DifferentiableCollective, SizesThatDoNotDivideAreNamed) {
  run_ranks(2, [](World& world) {
    Group* group = &world.group();
    const auto x = waves({4, 7}, 1);
    const auto split =
        text_of<c10::ValueError>([&] { split_to_group(group, x, 1); });
    EXPECT_THAT(split, HasSubstr(c10::str("[rank ", world.rank(), "]")));
    EXPECT_THAT(split,
                HasSubstr("split_to_group: dimension 1 of [4, 7] has 7"));
    EXPECT_THAT(split, HasSubstr("the 2 ranks"));
    EXPECT_THAT(text_of<c10::ValueError>([&] { all_to_all(group, x, -1, 0); }),
                HasSubstr("all_to_all: dimension 1 of [4, 7] has 7"));
    EXPECT_THROW(gather_from_group(group, x, 2), c10::IndexError);
    // Nothing was sent, so the group still works.
    expect_close(reduce_from_group(group, x), 2 * x);
  });
}

}  // namespace
}  // namespace nfold
