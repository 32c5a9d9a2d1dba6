#include "nfold/sequence_parallel.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nfold/collectives.h"
#include "parallel/parallel_test.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::HasSubstr;

at::Tensor causal_attention(const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value) {
  return at::scaled_dot_product_attention(
      query, key, value, {}, 0, /*is_causal=*/true, std::nullopt,
      /*enable_gqa=*/query.size(1) != key.size(1));
}

// Every test below runs with 1, 2, 3 and 4 ranks.
class SequenceParallel : public ::testing::TestWithParam<int> {
 protected:
  void on_ranks(const std::function<void(World&)>& body) {
    run_ranks(GetParam(), body);
  }
};
INSTANTIATE_TEST_SUITE_P(Ranks, SequenceParallel,
                         ::testing::Values(1, 2, 3, 4));

TEST_P(SequenceParallel, AttentionEqualsThatOfTheWholeSequence) {
  on_ranks([](World& world) {
    Group* group = &world.group();
    const std::int64_t n = world.size();
    for (const std::int64_t kv_heads : {2 * n, n}) {
      const at::Tensor inputs[] = {waves({2, 2 * n, 3 * n, 4}, 1),
                                   waves({2, kv_heads, 3 * n, 4}, 2),
                                   waves({2, kv_heads, 3 * n, 4}, 3)};
      std::vector<at::Tensor> whole;
      std::vector<at::Tensor> own;
      for (const auto& input : inputs) {
        whole.push_back(input.clone().requires_grad_());
        own.push_back(split_sequence(group, input, 2).clone().requires_grad_());
      }
      const auto expected = causal_attention(whole[0], whole[1], whole[2]);
      const auto found = sequence_parallel_attention(group, own[0], own[1],
                                                     own[2], causal_attention);
      expect_close(found, split_sequence(group, expected, 2));
      const auto weight = waves({2, 2 * n, 3 * n, 4}, 4);
      (expected * weight).sum().backward();
      (found * split_sequence(group, weight, 2)).sum().backward();
      for (std::size_t i = 0; i < whole.size(); ++i) {
        expect_close(own[i].grad(), split_sequence(group, whole[i].grad(), 2),
                     4e-6);
      }
    }
  });
}

TEST_P(SequenceParallel, LossIsTheMeanOverTheWholeSequence) {
  on_ranks([](World& world) {
    Group* group = &world.group();
    const std::int64_t n = world.size();
    auto targets = at::arange(2 * 6 * n, at::kLong).view({2, 6 * n}) * 3 % 7;
    // Most of the last rank's tokens do not count.
    targets.narrow(1, 6 * n - 4, 3).fill_(-100);
    const auto logits = waves({2, 6 * n, 7}, 5) * 4;
    auto whole = logits.clone().requires_grad_();
    auto own = split_sequence(group, logits, 1).clone().requires_grad_();
    const auto expected =
        at::cross_entropy_loss(whole.flatten(0, 1), targets.flatten());
    const auto found = sequence_parallel_cross_entropy(
        group, own, split_sequence(group, targets, 1));
    EXPECT_EQ(found.dim(), 0);
    EXPECT_EQ(found.scalar_type(), at::kFloat);
    expect_close(found, expected);
    expected.backward();
    found.backward();
    expect_close(own.grad(), split_sequence(group, whole.grad(), 1));
    // The same number everywhere, to the last bit.
    auto largest = found.detach().clone();
    all_reduce(*group, largest, ReduceOp::kMax).wait();
    EXPECT_TRUE(at::equal(largest, found));
  });
}

TEST_P(SequenceParallel, GradientsOfParametersAddUpOverTheGroup) {
  on_ranks([](World& world) {
    Group* group = &world.group();
    const std::int64_t n = world.size();
    const auto x = waves({2, 3 * n, 8}, 1);
    const auto targets = at::arange(6 * n, at::kLong).view({2, 3 * n}) % 24;
    const auto run = [&](Group* g) {
      auto weight = waves({8, 72}, 2).requires_grad_();
      const auto own = split_sequence(g, x, 1);
      const auto qkv = at::matmul(own, weight)
                           .unflatten(-1, {3, 12, 2})
                           .permute({2, 0, 3, 1, 4})
                           .unbind(0);
      const auto y = sequence_parallel_attention(g, qkv[0], qkv[1], qkv[2],
                                                 causal_attention)
                         .transpose(1, 2)
                         .flatten(2);
      sequence_parallel_cross_entropy(g, y, split_sequence(g, targets, 1))
          .backward();
      return weight.grad();
    };
    auto sum = run(group);
    all_reduce(*group, sum).wait();
    expect_close(sum, run(nullptr), 4e-6);
  });
}

TEST_P(SequenceParallel, PositionsFollowEachOther) {
  on_ranks([](World& world) {
    Group* group = &world.group();
    const auto whole = at::arange(5 * world.size(), at::kLong).unsqueeze(0);
    const auto own = split_sequence(group, whole, 1);
    EXPECT_TRUE(at::equal(
        own[0], sequence_offset(group, 5) + at::arange(5, at::kLong)));
  });
}

TEST(SequenceParallelSizes, ThatDoNotDivideAreNamed) {
  run_ranks(2, [](World& world) {
    Group* group = &world.group();
    const auto q = waves({1, 4, 5, 2}, 1);
    EXPECT_THAT(
        text_of<c10::ValueError>([&] { split_sequence(group, q, 2); }),
        HasSubstr("tokens of a sequence: 5 do not divide by the 2 ranks"));
    const auto attend = [&](const at::Tensor& query, const at::Tensor& key) {
      sequence_parallel_attention(group, query, key, key, causal_attention);
    };
    const auto odd = waves({1, 3, 5, 2}, 1);
    EXPECT_THAT(text_of<c10::ValueError>([&] { attend(odd, odd); }),
                HasSubstr("attention heads: 3 do not divide by the 2 ranks"));
    EXPECT_THAT(
        text_of<c10::ValueError>([&] { attend(q, waves({1, 1, 5, 2}, 1)); }),
        HasSubstr("heads of keys and values: 1 do not divide by the 2 ranks"));
    EXPECT_THROW(attend(q[0], q[0]), c10::ValueError);
    EXPECT_THROW(
        mean_over_sequence(group, at::zeros({3}), at::zeros({4}, at::kLong)),
        c10::ValueError);
  });
}

}  // namespace
}  // namespace nfold
