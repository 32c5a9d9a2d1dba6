#include "kernels/sum_tree.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <vector>

#include "kernels/kernel_testing.h"

namespace nfold::kernels {
namespace {

const std::vector<at::ScalarType> kSumDtypes{at::kFloat, at::kDouble, at::kHalf,
                                             at::kBFloat16};
const std::vector<at::ScalarType> kIntegerDtypes{at::kChar, at::kByte, at::kInt,
                                                 at::kLong};

// The definition, in ATen.
at::Tensor tree_of(const std::vector<at::Tensor>& wide) {
  if (wide.size() == 1) return wide[0];
  std::size_t half = 1;
  while (2 * half < wide.size()) half *= 2;
  return tree_of({wide.begin(), wide.begin() + half}) +
         tree_of({wide.begin() + half, wide.end()});
}

at::Tensor reference_sum(const std::vector<at::Tensor>& inputs) {
  const at::ScalarType dtype = inputs[0].scalar_type();
  std::vector<at::Tensor> wide;
  for (const at::Tensor& input : inputs) {
    wide.push_back(at::isReducedFloatingType(dtype) ? input.to(at::kFloat)
                                                    : input);
  }
  return tree_of(wide).to(dtype);
}

TEST(SumTree, AddsInTreeOrderAndRoundsOnce) {
  std::mt19937 random(1);
  for (const at::ScalarType dtype : kSumDtypes) {
    for (std::size_t count : {1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 33}) {
      std::vector<at::Tensor> inputs;
      for (std::size_t i = 0; i < count; ++i) {
        inputs.push_back(awkward_tensor(2500, dtype, random));
      }
      const at::Tensor out = at::empty_like(inputs[0]);
      for (const Stores stores : {Stores::kCached, Stores::kStreaming}) {
        out.zero_();
        sum_tree(out, inputs, stores);
        EXPECT_TRUE(is_bitwise_equal(out, reference_sum(inputs)))
            << dtype << " with " << count << " inputs";
      }
    }
  }
}

TEST(SumTree, SplitsAtTheLargestPowerOfTwo) {
  // In fp32, 2^24 + 1 is 2^24: the order shows.
  const float big = 0x1p24F;
  std::vector<at::Tensor> inputs;
  for (const float value : {big, 1.0F, 1.0F, 1.0F, -big}) {
    inputs.push_back(at::full({1}, value));
  }
  const at::Tensor out = at::empty({1});
  sum_tree(out, inputs);
  // ((2^24 + 1) + (1 + 1)) - 2^24; from left to right it would be 0.
  EXPECT_EQ(out.item<float>(), 2.0F);
}

TEST(SumTree, IntegersAreExactAndWrapAround) {
  std::mt19937 random(2);
  for (const at::ScalarType dtype : kIntegerDtypes) {
    std::vector<at::Tensor> inputs;
    for (int i = 0; i < 5; ++i) {
      inputs.push_back(awkward_tensor(1500, dtype, random));
    }
    const at::Tensor out = at::empty_like(inputs[0]);
    sum_tree(out, inputs);
    EXPECT_TRUE(at::equal(out, reference_sum(inputs))) << dtype;
  }
}

TEST(SumTree, OutputMayBeAnyInput) {
  std::mt19937 random(3);
  for (const at::ScalarType dtype : kSumDtypes) {
    for (std::size_t count : {1, 2, 3, 5, 8}) {
      for (std::size_t alias = 0; alias < count; ++alias) {
        std::vector<at::Tensor> inputs;
        for (std::size_t i = 0; i < count; ++i) {
          inputs.push_back(awkward_tensor(2100, dtype, random));
        }
        const at::Tensor expected = reference_sum(inputs);
        sum_tree(inputs[alias], inputs,
                 alias % 2 == 0 ? Stores::kCached : Stores::kStreaming);
        EXPECT_TRUE(is_bitwise_equal(inputs[alias], expected))
            << dtype << ", input " << alias << " of " << count;
      }
    }
  }
}

TEST(SumTree, SplittingARangeDoesNotChangeIt) {
  std::mt19937 random(4);
  for (const at::ScalarType dtype : kSumDtypes) {
    const std::int64_t numel = 70001;
    std::vector<at::Tensor> inputs;
    for (int i = 0; i < 3; ++i) {
      inputs.push_back(awkward_tensor(numel, dtype, random));
    }
    const at::Tensor whole = at::empty_like(inputs[0]);
    sum_tree(whole, inputs);
    const at::Tensor parts = at::empty_like(whole);
    for (std::int64_t begin = 0; begin < numel;) {
      const std::int64_t length =
          std::min<std::int64_t>(numel - begin, 1 + random() % 3000);
      std::vector<at::Tensor> pieces;
      for (const at::Tensor& input : inputs) {
        pieces.push_back(input.narrow(0, begin, length));
      }
      sum_tree(parts.narrow(0, begin, length), pieces);
      begin += length;
    }
    EXPECT_TRUE(is_bitwise_equal(whole, parts)) << dtype;
  }
}

TEST(SumTree, EmptyTensorsAreFine) {
  const at::Tensor empty = at::empty({0});
  sum_tree(empty, {empty, empty});
  EXPECT_EQ(empty.numel(), 0);
}

TEST(MaxOf, KeepsTheLargestAndNan) {
  std::mt19937 random(5);
  for (const auto& dtypes : {kSumDtypes, kIntegerDtypes}) {
    for (const at::ScalarType dtype : dtypes) {
      std::vector<at::Tensor> inputs;
      for (int i = 0; i < 3; ++i) {
        inputs.push_back(awkward_tensor(1500, dtype, random));
      }
      const at::Tensor out = at::empty_like(inputs[0]);
      max_of(out, inputs);
      const at::Tensor expected =
          at::maximum(at::maximum(inputs[0], inputs[1]), inputs[2]);
      EXPECT_TRUE(at::allclose(out, expected, 0, 0, /*equal_nan=*/true))
          << dtype;
    }
  }
}

TEST(SumTree, TensorsThatDoNotFitAreNamed) {
  const at::Tensor out = at::zeros({4});
  EXPECT_THROW(sum_tree(out, {}), c10::ValueError);
  EXPECT_THROW(sum_tree(out, {at::zeros({5})}), c10::ValueError);
  EXPECT_THROW(sum_tree(out, {out, at::zeros({4}, at::kDouble)}),
               c10::ValueError);
  EXPECT_THROW(sum_tree(out, {at::zeros({4, 2}).select(1, 0)}),
               c10::ValueError);
  EXPECT_THROW(sum_tree(at::Tensor(), {out}), c10::ValueError);
  const at::Tensor complex = at::zeros({4}, at::kComplexFloat);
  EXPECT_THROW(sum_tree(complex, {complex}), c10::NotImplementedError);
  try {
    sum_tree(out, {out, at::zeros({3})});
    FAIL() << "an input of another size was accepted";
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what())
                  .find("inputs[1]: expected 4 elements but found 3"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace nfold::kernels
