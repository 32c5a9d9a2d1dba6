#include "nfold/partition.h"

#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "nfold/errors.h"

namespace nfold {
namespace {

using Bounds = std::vector<std::int64_t>;
using Weights = std::vector<double>;

TEST(PartitionUniform, LargerPartsComeFirst) {
  EXPECT_EQ(partition_uniform(10, 3), (Bounds{0, 4, 7, 10}));
  EXPECT_EQ(partition_uniform(7, 2), (Bounds{0, 4, 7}));
  EXPECT_EQ(partition_uniform(17, 4), (Bounds{0, 5, 9, 13, 17}));
  EXPECT_EQ(partition_uniform(6, 4), (Bounds{0, 2, 4, 5, 6}));
  EXPECT_EQ(partition_uniform(9, 8), (Bounds{0, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(partition_uniform(100, 7),
            (Bounds{0, 15, 30, 44, 58, 72, 86, 100}));
}

TEST(PartitionUniform, EqualPartsWhenTheyDivide) {
  EXPECT_EQ(partition_uniform(8, 4), (Bounds{0, 2, 4, 6, 8}));
  EXPECT_EQ(partition_uniform(5, 5), (Bounds{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(partition_uniform(1, 1), (Bounds{0, 1}));
}

TEST(PartitionUniform, TooFewItemsLeaveTheLastPartsEmpty) {
  EXPECT_EQ(partition_uniform(3, 5), (Bounds{0, 1, 2, 3, 3, 3}));
  EXPECT_EQ(partition_uniform(0, 4), (Bounds{0, 0, 0, 0, 0}));
}

TEST(PartitionUniform, RefusesNegativeItemsAndNoParts) {
  EXPECT_THROW(partition_uniform(-1, 2), c10::ValueError);
  EXPECT_THROW(partition_uniform(4, 0), c10::ValueError);
}

struct BalancedCase {
  Weights weights;
  std::int64_t num_parts;
  Bounds bounds;
};

class PartitionBalanced : public testing::TestWithParam<BalancedCase> {};

TEST_P(PartitionBalanced, GivesTheBoundsOfDeepSpeed) {
  const BalancedCase& param = GetParam();
  EXPECT_EQ(partition_balanced(param.weights, param.num_parts), param.bounds);
}

Weights repeated(std::size_t count, double weight) {
  return Weights(count, weight);
}

Weights nine_times_one_after_eight() {
  Weights weights = repeated(9, 1);
  weights[0] = 8;
  return weights;
}

// The parameters of a 24-layer BERT: embedding, layers, pooling, head.
Weights bert_24() {
  Weights weights = repeated(27, 12596224);
  weights[0] = 52559872;
  weights[25] = 0;
  weights[26] = 52559872;
  return weights;
}

INSTANTIATE_TEST_SUITE_P(
    Numbers, PartitionBalanced,
    testing::Values(
        BalancedCase{{1, 1, 1, 1}, 2, {0, 2, 4}},
        BalancedCase{{1, 2, 3, 4}, 2, {0, 3, 4}},
        BalancedCase{{1, 2, 1}, 2, {0, 2, 3}},
        BalancedCase{{1, 1, 2, 1}, 2, {0, 2, 4}},
        BalancedCase{{1, 1, 2}, 2, {0, 2, 3}},
        BalancedCase{{1, 1, 2, 3, 5, 8}, 3, {0, 4, 5, 6}},
        BalancedCase{{10, 1, 1, 1, 1}, 2, {0, 1, 5}},
        BalancedCase{repeated(8, 1), 3, {0, 3, 6, 8}},
        BalancedCase{repeated(10, 1), 4, {0, 3, 6, 8, 10}},
        BalancedCase{{0, 0, 5, 0, 0}, 2, {0, 4, 5}},
        BalancedCase{{5, 5, 5}, 3, {0, 1, 2, 3}},
        BalancedCase{{3, 1}, 4, {0, 1, 2, 2, 2}},
        BalancedCase{{1, 2, 3, 4, 5, 6, 7, 8, 9}, 3, {0, 5, 7, 9}},
        BalancedCase{{9, 8, 7, 6, 5, 4, 3, 2, 1}, 3, {0, 2, 4, 9}},
        BalancedCase{{1, 1, 1, 1, 1000}, 2, {0, 4, 5}},
        BalancedCase{{0, 1, 2, 3, 3, 3}, 4, {0, 3, 4, 5, 6}},
        BalancedCase{{0, 1.1, 1.9, 3, 3, 3}, 4, {0, 3, 4, 5, 6}},
        BalancedCase{{0, 1.1, 1.9, 3, 30}, 2, {0, 4, 5}},
        BalancedCase{{0, 1.1, 30, 3}, 3, {0, 2, 3, 4}},
        BalancedCase{{0, 7.1, 7.1, 7.1, 7.1, 0, 0}, 4, {0, 2, 3, 4, 7}},
        BalancedCase{{1.5, 2.5, 1, 4}, 2, {0, 3, 4}},
        BalancedCase{{4, 1, 1, 4}, 2, {0, 2, 4}},
        BalancedCase{repeated(5, 2), 2, {0, 3, 5}},
        BalancedCase{{1, 100, 1}, 2, {0, 2, 3}},
        BalancedCase{nine_times_one_after_eight(), 2, {0, 1, 9}},
        BalancedCase{{1, 1, 1, 1, 0, 1}, 4, {0, 2, 3, 5, 6}},
        BalancedCase{repeated(10, 1), 1, {0, 10}},
        BalancedCase{bert_24(), 8, {0, 1, 5, 9, 13, 17, 21, 26, 27}}));

double spread_of(const Weights& weights, std::int64_t num_parts) {
  const Bounds bounds = partition_balanced(weights, num_parts);
  Weights sums;
  for (std::int64_t part = 0; part < num_parts; ++part) {
    sums.push_back(std::accumulate(weights.begin() + bounds[part],
                                   weights.begin() + bounds[part + 1], 0.0));
  }
  const auto [smallest, largest] =
      std::minmax_element(sums.begin(), sums.end());
  return *largest - *smallest;
}

TEST(PartitionBalancedSpread, IsThatOfDeepSpeed) {
  EXPECT_EQ(spread_of({1, 2, 1}, 4), 2);
  EXPECT_EQ(spread_of({1, 1, 1, 1}, 4), 0);
  EXPECT_EQ(spread_of({1, 1, 1, 1, 1}, 4), 1);
  EXPECT_EQ(spread_of({1, 1, 1, 1, 0, 1}, 4), 1);
}

TEST(PartitionBalancedInput, RefusesNoPartsAndWeightsThatAreNotFinite) {
  EXPECT_THROW(partition_balanced(Weights{1, 2}, 0), c10::ValueError);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(partition_balanced(Weights{1, nan, 3}, 2), c10::ValueError);
  EXPECT_EQ(partition_balanced(Weights{}, 2), (Bounds{0, 0, 0}));
}

TEST(PrefixSum, IncludesEachValueAndLeavesItsInputAlone) {
  const std::vector<int> counts{3, 4, 5};
  EXPECT_EQ(prefix_sum_inc(counts), (std::vector<int>{3, 7, 12}));
  EXPECT_EQ(counts, (std::vector<int>{3, 4, 5}));
  EXPECT_EQ(prefix_sum_inc(std::vector<int>{}), std::vector<int>{});
  EXPECT_EQ(prefix_sum_inc<double>({1, -1, 2.5}), (Weights{1, 0, 2.5}));
}

TEST(PaddingNumel, CompletesAMultipleOfTheAlignment) {
  EXPECT_EQ(padding_numel(7, 4), 1);
  EXPECT_EQ(padding_numel(8, 4), 0);
  EXPECT_EQ(padding_numel(0, 4), 0);
  EXPECT_EQ(padding_numel(13, std::lcm(4, 6)), 11);
  EXPECT_THROW(padding_numel(7, 0), c10::ValueError);
  EXPECT_THROW(padding_numel(-1, 4), c10::ValueError);
}

TEST(GatherPieces, AreEqualAndAlignedAndTheLastTakesTheRest) {
  using Pieces = std::vector<GatherPiece>;
  EXPECT_EQ(plan_gather_pieces(100, 4, 100, 8),
            (Pieces{{0, 24}, {24, 24}, {48, 24}, {72, 28}}));
  EXPECT_EQ(plan_gather_pieces(101, 2, 64, 8),
            (Pieces{{0, 32}, {32, 32}, {64, 37}}));
  EXPECT_EQ(plan_gather_pieces(10, 2, 1000, 8), (Pieces{{0, 10}}));
  EXPECT_EQ(plan_gather_pieces(7, 2, 4, 2), (Pieces{{0, 2}, {2, 2}, {4, 3}}));
  // Shorter than its alignment.
  EXPECT_EQ(plan_gather_pieces(7, 2, 4, 8), (Pieces{{0, 0}, {0, 0}, {0, 7}}));
  EXPECT_EQ(plan_gather_pieces(0, 2, 4, 2), (Pieces{{0, 0}}));
  EXPECT_THROW(plan_gather_pieces(7, 2, 0, 2), c10::ValueError);
}

}  // namespace
}  // namespace nfold
