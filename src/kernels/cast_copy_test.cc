#include "kernels/cast_copy.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "kernels/kernel_testing.h"

namespace nfold::kernels {
namespace {

const std::vector<at::ScalarType> kFloatDtypes{at::kFloat, at::kDouble,
                                               at::kHalf, at::kBFloat16};

at::ScalarType common_dtype(at::ScalarType a, at::ScalarType b) {
  return a == at::kDouble || b == at::kDouble ? at::kDouble : at::kFloat;
}

TEST(ScaledCast, EveryHalfAndBfloat16NumberSurvivesFp32) {
  const at::Tensor all = at::arange(-32768, 32768, at::kShort);
  for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
    const at::Tensor numbers = all.view(dtype);
    const at::Tensor wide = at::empty({65536}, at::kFloat);
    scaled_cast(wide, numbers);
    EXPECT_TRUE(is_bitwise_equal(wide, numbers.to(at::kFloat))) << dtype;
    const at::Tensor back = at::empty_like(numbers);
    scaled_cast(back, wide);
    EXPECT_TRUE(is_bitwise_equal(back, numbers)) << dtype;
    EXPECT_TRUE(at::equal(back.signbit(), numbers.signbit())) << dtype;
  }
}

TEST(ScaledCast, RoundsToNearestEvenAsAtenDoes) {
  // Every neighbourhood of a 16-bit number: the tie and its neighbours.
  const at::Tensor upper = at::arange(0, 65536, at::kInt) * 65536;
  for (const std::int64_t lower : {0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000,
                                   0x8001, 0xefff, 0xf000, 0xf001, 0xffff}) {
    const at::Tensor numbers = (upper + lower).to(at::kInt).view(at::kFloat);
    for (const at::ScalarType dtype : {at::kHalf, at::kBFloat16}) {
      const at::Tensor out = at::empty({65536}, dtype);
      scaled_cast(out, numbers);
      EXPECT_TRUE(is_bitwise_equal(out, numbers.to(dtype)))
          << dtype << " " << lower;
    }
  }
}

TEST(ScaledCast, Fp64IsRoundedOnce) {
  // Just above the tie between two bf16 (fp16) numbers, by less than fp32 can
  // tell: rounding to fp32 first would go down to the even one.
  const at::Tensor numbers =
      at::tensor({1 + 0x1p-8 + 0x1p-40, 1 + 0x1p-11 + 0x1p-40}, at::kDouble);
  const at::Tensor bfloat16 = at::empty({2}, at::kBFloat16);
  scaled_cast(bfloat16, numbers);
  EXPECT_EQ(bfloat16[0].item<double>(), 1 + 0x1p-7);
  const at::Tensor half = at::empty({2}, at::kHalf);
  scaled_cast(half, numbers);
  EXPECT_EQ(half[1].item<double>(), 1 + 0x1p-10);
}

TEST(ScaledCast, Fp64ExtremesBecomeInfiniteOrZero) {
  const double huge = std::numeric_limits<double>::max();
  const double tiny = std::numeric_limits<double>::denorm_min();
  const at::Tensor numbers =
      at::tensor({huge, -huge, tiny, -tiny, 65519.999, 65520.0}, at::kDouble);
  const at::Tensor half = at::empty({6}, at::kHalf);
  scaled_cast(half, numbers);
  const float infinity = std::numeric_limits<float>::infinity();
  const at::Tensor expected = at::tensor(
      {infinity, -infinity, 0.0F, -0.0F, 65504.0F, infinity}, at::kFloat);
  EXPECT_TRUE(is_bitwise_equal(half, expected.to(at::kHalf)));
}

TEST(ScaledCast, MultipliesInTheWiderTypeForEveryPair) {
  std::mt19937 random(1);
  const float scale = 0.3F;
  for (const at::ScalarType from : kFloatDtypes) {
    for (const at::ScalarType to : kFloatDtypes) {
      const at::Tensor source = awkward_tensor(5003, from, random);
      const at::Tensor out = at::empty({5003}, to);
      scaled_cast(out, source, scale);
      const at::ScalarType compute = common_dtype(from, to);
      at::Tensor product = source.to(compute) * at::full({1}, scale, compute);
      if (from == at::kDouble && at::isReducedFloatingType(to)) {
        // ATen rounds twice here; see Fp64IsRoundedOnce.
        EXPECT_TRUE(at::allclose(out.to(at::kDouble),
                                 product.to(to).to(at::kDouble), 0.01, 1e-7,
                                 true));
        continue;
      }
      EXPECT_TRUE(is_bitwise_equal(out, product.to(to))) << from << to;
    }
  }
}

TEST(ScaledCast, ScaleOneIsAPlainCopy) {
  std::mt19937 random(2);
  for (const at::ScalarType dtype :
       {at::kFloat, at::kBFloat16, at::kLong, at::kByte}) {
    const at::Tensor source = awkward_tensor(100003, dtype, random);
    const at::Tensor out = at::empty_like(source);
    scaled_cast(out, source, 1.0F);
    EXPECT_TRUE(is_bitwise_equal(out, source)) << dtype;
  }
}

TEST(ScaledCast, SourceAndDestinationMayBeTheSame) {
  const at::Tensor numbers = at::arange(1000, at::kFloat);
  scaled_cast(numbers, numbers, 0.5F);
  EXPECT_TRUE(at::equal(numbers, at::arange(1000, at::kFloat) * 0.5));
}

TEST(Accumulate, RoundsProductAndSumOneAfterTheOther) {
  std::mt19937 random(3);
  const float scale = 0.7F;
  for (const at::ScalarType to : kFloatDtypes) {
    for (const at::ScalarType from : kFloatDtypes) {
      if (from == at::kDouble && at::isReducedFloatingType(to)) continue;
      const at::Tensor accumulator = awkward_tensor(5003, to, random);
      const at::Tensor x = awkward_tensor(5003, from, random);
      const at::ScalarType compute = common_dtype(from, to);
      const at::Tensor product = x.to(compute) * at::full({1}, scale, compute);
      const at::Tensor expected = (accumulator.to(compute) + product).to(to);
      accumulate(accumulator, x, scale);
      EXPECT_TRUE(is_bitwise_equal(accumulator, expected)) << to << from;
    }
  }
}

TEST(Accumulate, EqualsCopyingTheFirstAndAddingTheSecond) {
  std::mt19937 random(4);
  const at::Tensor x = awkward_tensor(3001, at::kBFloat16, random);
  const at::Tensor y = awkward_tensor(3001, at::kBFloat16, random);
  const at::Tensor copied = at::empty({3001});
  scaled_cast(copied, x, 0.25F);
  accumulate(copied, y, 0.25F);
  const at::Tensor added = at::zeros({3001});
  accumulate(added, x, 0.25F);
  accumulate(added, y, 0.25F);
  EXPECT_TRUE(at::allclose(copied, added, 0, 0, /*equal_nan=*/true));
}

TEST(ScaledCast, TensorsThatDoNotFitAreNamed) {
  const at::Tensor numbers = at::zeros({4});
  EXPECT_THROW(scaled_cast(numbers, at::zeros({3})), c10::ValueError);
  EXPECT_THROW(scaled_cast(numbers, at::zeros({4, 2}).select(1, 1)),
               c10::ValueError);
  EXPECT_THROW(scaled_cast(numbers, at::zeros({4}, at::kInt)),
               c10::NotImplementedError);
  EXPECT_THROW(accumulate(at::zeros({4}, at::kInt), at::zeros({4}, at::kInt)),
               c10::NotImplementedError);
}

}  // namespace
}  // namespace nfold::kernels
