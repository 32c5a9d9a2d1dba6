#include "kernels/quantize.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/kernel_testing.h"
#include "kernels/simd.h"
#include "kernels/sum_tree.h"

namespace nfold::kernels {
namespace {

const std::vector<at::ScalarType> kCodedDtypes{at::kFloat, at::kHalf,
                                               at::kBFloat16};
const std::vector<std::int64_t> kCodedNumels{0,   1,   2,   7,   8,    127,
                                             128, 129, 255, 256, 1023, 5003};

std::vector<BlockCodec> codecs() {
  std::vector<BlockCodec> all;
  for (const int bits : {8, 4}) {
    for (const bool is_symmetric : {true, false}) {
      for (const std::int64_t block : {1, 7, 64, 128, 256, 4096}) {
        all.push_back({bits, is_symmetric, block});
      }
    }
  }
  return all;
}

std::string text_of(const BlockCodec& codec) {
  return std::to_string(codec.bits) +
         (codec.is_symmetric ? " bits, symmetric" : " bits, asymmetric") +
         ", blocks of " + std::to_string(codec.block_numel);
}

// The definition, in ATen: what a block of floats comes back as.
at::Tensor reference_block(const at::Tensor& x, const BlockCodec& codec) {
  const auto low = x.min();
  const auto high = x.max();
  const double levels = std::pow(2, codec.bits);
  const double lowest = codec.is_symmetric ? -levels / 2 : 0;
  const double highest = lowest + levels - 1;
  auto step = codec.is_symmetric ? at::where(high > -low, high, low) / lowest
                                 : (high - low) / highest;
  if (!at::isfinite(x).all().item<bool>() ||
      !at::isfinite(step).all().item<bool>()) {
    return at::full_like(x, std::nan(""));
  }
  const auto smallest = at::full_like(step, 0x1p-126);
  step = at::where(step.abs() < smallest, at::copysign(smallest, step), step);
  const auto offset = codec.is_symmetric ? at::zeros_like(low) : low;
  const auto inverse = at::ones_like(step) / step;
  const auto code = ((x - offset) * inverse).clamp(lowest, highest).round();
  return code * step + offset;
}

at::Tensor reference_round_trip(const at::Tensor& x, const BlockCodec& codec) {
  if (x.numel() == 0) return x;
  std::vector<at::Tensor> blocks;
  for (const auto& block : x.to(at::kFloat).split(codec.block_numel)) {
    blocks.push_back(reference_block(block, codec));
  }
  return at::cat(blocks).to(x.scalar_type());
}

at::Tensor round_trip(const at::Tensor& x, const BlockCodec& codec) {
  return dequantized(quantized(x, codec), x.numel(), x.scalar_type(), codec);
}

TEST(Quantize, GivesTheBitsOfTheDefinition) {
  std::mt19937 random(1);
  for (const auto& codec : codecs()) {
    for (const auto dtype : kCodedDtypes) {
      for (const auto numel : kCodedNumels) {
        // Slow in ATen.
        if (numel > 40 * codec.block_numel) continue;
        for (const bool is_awkward : {false, true}) {
          const auto x = is_awkward ? awkward_tensor(numel, dtype, random)
                                    : at::randn({numel}).to(dtype);
          // 0 and -0 count as equal.
          EXPECT_TRUE(at::allclose(round_trip(x, codec),
                                   reference_round_trip(x, codec), 0, 0, true))
              << text_of(codec) << ", " << numel << " of " << dtype;
        }
      }
    }
  }
}

// |x' - x| of each element, and the bounds of nfold/quantization.h.
void expect_within_bounds(const at::Tensor& x, const BlockCodec& codec) {
  const auto levels = std::pow(2.0, codec.bits);
  constexpr double kTiny = 0x1p-126;
  const auto blocks = x.to(at::kDouble).split(codec.block_numel);
  const auto results =
      dequantized(quantized(x, codec), x.numel(), at::kFloat, codec)
          .to(at::kDouble)
          .split(codec.block_numel);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const auto& values = blocks[i];
    const auto error = (results[i] - values).abs();
    if (!codec.is_symmetric) {
      const double range = (values.max() - values.min()).item<double>();
      const double magnitude = values.abs().max().item<double>();
      EXPECT_LE(
          error.max().item<double>(),
          range / (2 * (levels - 1)) * (1 + 1e-5) + magnitude * 1e-6 + kTiny)
          << text_of(codec);
      continue;
    }
    const double high = values.max().item<double>();
    const double low = values.min().item<double>();
    const double most = high > -low ? high : low;
    const double step = std::abs(most) / (levels / 2);
    EXPECT_LE(error.max().item<double>(), step * (1 + 1e-5) + kTiny)
        << text_of(codec);
    const auto has_level =
        values * (most < 0 ? -1.0 : 1.0) >= -(levels / 2 - 0.5) * step;
    EXPECT_LE(
        error.masked_fill(has_level.logical_not(), 0).max().item<double>(),
        step / 2 * (1 + 1e-5) + kTiny)
        << text_of(codec);
    const auto is_most = values == most;
    EXPECT_LE(error.masked_select(is_most).max().item<double>(), kTiny);
  }
}

TEST(Quantize, KeepsItsErrorBounds) {
  at::manual_seed(2);
  for (const auto& codec : codecs()) {
    for (const std::int64_t numel : {1, 2, 7, 8, 1023}) {
      if (numel > 150 * codec.block_numel) continue;
      for (const double scale : {1e-30, 1e-3, 1.0, 1e30}) {
        for (const auto& x :
             {at::randn({numel}) * scale, at::rand({numel}) * scale,
              -at::rand({numel}) * scale - 0.5 * scale,
              (at::rand({numel}) - 0.5).pow(5) * scale}) {
          expect_within_bounds(x, codec);
        }
      }
    }
  }
}

TEST(Quantize, BothEndsOfASymmetricBlock) {
  // The first of two extremes of equal magnitude that is exact is the negative
  // one; the other is one level off.
  const BlockCodec codec{.bits = 8, .block_numel = 4};
  const auto both = round_trip(at::tensor({-1.0F, 1.0F, 0.0F, 0.5F}), codec);
  EXPECT_TRUE(at::equal(both, at::tensor({-1.0F, 127 / 128.0F, 0.0F, 0.5F})));
  const auto positive = round_trip(at::tensor({-0.5F, 1.0F, 0.0F}), codec);
  EXPECT_TRUE(at::equal(positive, at::tensor({-0.5F, 1.0F, 0.0F})));
}

TEST(Quantize, ConstantAndTinyBlocks) {
  for (const auto& codec : codecs()) {
    for (const float value : {0.0F, 3.25F, -7.5F, 65504.0F}) {
      const auto x = at::full({100}, value);
      EXPECT_TRUE(at::equal(round_trip(x, codec), x)) << text_of(codec);
    }
    const auto tiny = at::randn({100}) * 0x1p-130;
    EXPECT_LE((round_trip(tiny, codec) - tiny).abs().max().item<float>(),
              0x1p-127F)
        << text_of(codec);
  }
  const auto huge = at::full({8}, std::numeric_limits<float>::max());
  EXPECT_TRUE(at::equal(round_trip(huge, BlockCodec{}), huge));
  huge.narrow(0, 0, 4).neg_();
  EXPECT_TRUE(
      round_trip(huge, {.is_symmetric = false}).isnan().all().item<bool>());
}

TEST(Quantize, ABlockThatIsNotFiniteComesBackAsNan) {
  for (const auto& codec : codecs()) {
    for (const auto dtype : kCodedDtypes) {
      for (const double bad : {std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity(),
                               std::nan(""), -std::nan("")}) {
        const std::int64_t numel = 3 * codec.block_numel;
        auto x = at::randn({numel}).to(dtype);
        x[codec.block_numel] = bad;
        const auto result = round_trip(x, codec).split(codec.block_numel);
        EXPECT_TRUE(at::isfinite(result[0]).all().item<bool>());
        EXPECT_TRUE(result[1].isnan().all().item<bool>()) << text_of(codec);
        EXPECT_TRUE(at::isfinite(result[2]).all().item<bool>());
      }
    }
  }
}

TEST(Quantize, OnceMoreChangesNothing) {
  std::mt19937 random(3);
  for (const auto& codec : codecs()) {
    if (!codec.is_symmetric) continue;
    for (const auto dtype : kCodedDtypes) {
      for (const auto& x :
           {awkward_tensor(5003, dtype, random), at::randn({5003}).to(dtype),
            (at::randn({5003}) * 1e-5).to(dtype)}) {
        const auto once = round_trip(x, codec);
        EXPECT_TRUE(at::allclose(round_trip(once, codec), once, 0, 0, true))
            << text_of(codec) << " of " << dtype;
      }
    }
  }
}

TEST(Quantize, TakesTheBytesOfItsFormula) {
  EXPECT_EQ(encoded_bytes(0, kWeightCodec), 0);
  EXPECT_EQ(encoded_bytes(1, kWeightCodec), 4 + 4);
  EXPECT_EQ(encoded_bytes(256, kWeightCodec), 4 + 256);
  EXPECT_EQ(encoded_bytes(257, kWeightCodec), 8 + 260);
  EXPECT_EQ(encoded_bytes(128, kGradientCodec), 4 + 64);
  EXPECT_EQ(encoded_bytes(1023, kGradientCodec), 8 * 4 + 512);
  EXPECT_EQ(encoded_bytes(7, {.bits = 4, .is_symmetric = false}), 8 + 4);
  EXPECT_EQ(encoded_bytes(15, {.bits = 4, .block_numel = 5}), 3 * 4 + 12);
  const double numel = 1 << 20;
  EXPECT_GE(4 * numel / encoded_bytes(1 << 20, kWeightCodec), 3.9);
  EXPECT_GE(4 * numel / encoded_bytes(1 << 20, kGradientCodec), 7.5);
}

TEST(Quantize, EqualNumbersHaveEqualBytes) {
  const auto x = at::randn({1021});
  for (const auto& codec : codecs()) {
    auto a = at::full({encoded_bytes(1021, codec)}, 0xff, at::kByte);
    auto b = at::zeros_like(a);
    quantize(a, x, codec);
    quantize(b, x, codec);
    EXPECT_TRUE(at::equal(a, b)) << text_of(codec);
  }
}

TEST(DequantizeSum, IsTheTreeSumOfWhatEachComesBackAs) {
  at::manual_seed(4);
  for (const auto& codec :
       {kGradientCodec, kWeightCodec, BlockCodec{4, false, 7},
        BlockCodec{8, false, 64}}) {
    for (const auto dtype : kCodedDtypes) {
      for (const int count : {1, 2, 3, 5, 6, 8, 11}) {
        for (const std::int64_t numel : {0, 1, 127, 129, 5003}) {
          std::vector<at::Tensor> encoded;
          std::vector<at::Tensor> decoded;
          for (int i = 0; i < count; ++i) {
            encoded.push_back(quantized(at::randn({numel}), codec));
            decoded.push_back(
                dequantized(encoded.back(), numel, at::kFloat, codec));
          }
          auto expected = at::empty({numel});
          sum_tree(expected, decoded);
          auto sum = at::empty({numel}, dtype);
          dequantize_sum(sum, encoded, codec);
          EXPECT_TRUE(is_bitwise_equal(sum, expected.to(dtype)))
              << text_of(codec) << ", " << count << " inputs of " << numel;
        }
      }
    }
  }
}

TEST(DequantizeSum, ShowsANonFiniteInput) {
  auto bad = at::randn({300});
  bad[200] = std::numeric_limits<float>::infinity();
  const auto good = quantized(at::randn({300}), kGradientCodec);
  auto sum = at::empty({300});
  dequantize_sum(sum, {good, quantized(bad, kGradientCodec), good},
                 kGradientCodec);
  EXPECT_TRUE(sum[200].isnan().item<bool>());
  EXPECT_TRUE(at::isfinite(sum.narrow(0, 0, 128)).all().item<bool>());
}

at::Tensor zero_error(std::int64_t numel, const BlockCodec& codec) {
  return at::zeros({encoded_bytes(numel, error_codec_of(codec))}, at::kByte);
}

at::Tensor error_of(const at::Tensor& error, std::int64_t numel,
                    const BlockCodec& codec) {
  return dequantized(error, numel, at::kFloat, error_codec_of(codec));
}

TEST(QuantizeWithFeedback, FollowsItsFormula) {
  at::manual_seed(5);
  constexpr float kBeta = 0.8F;
  for (const auto dtype : kCodedDtypes) {
    for (const std::int64_t numel : {0, 1, 7, 128, 1023}) {
      const auto codec = kGradientCodec;
      auto error = zero_error(numel, codec);
      auto encoded = at::empty({encoded_bytes(numel, codec)}, at::kByte);
      for (int round = 0; round < 3; ++round) {
        const auto x = at::randn({numel}).to(dtype);
        const auto before = error_of(error, numel, codec);
        quantize_with_feedback(encoded, error, x, codec, kBeta);
        const auto wanted = x.to(at::kFloat) + before;
        EXPECT_TRUE(at::equal(encoded, quantized(wanted, codec)));
        const auto sent = dequantized(encoded, numel, at::kFloat, codec);
        const auto kept = before * kBeta + (wanted - sent) * (1.0F - kBeta);
        EXPECT_TRUE(at::equal(error, quantized(kept, error_codec_of(codec))));
      }
    }
  }
}

TEST(QuantizeWithFeedback, BringsTheMeanOfManyCloserToTheTruth) {
  at::manual_seed(6);
  const auto x = at::randn({4096});
  auto error = zero_error(4096, kGradientCodec);
  auto encoded = at::empty({encoded_bytes(4096, kGradientCodec)}, at::kByte);
  auto sum = at::zeros({4096});
  for (int i = 0; i < 100; ++i) {
    quantize_with_feedback(encoded, error, x, kGradientCodec, 0.8F);
    sum += dequantized(encoded, 4096, at::kFloat, kGradientCodec);
  }
  const auto plain = (round_trip(x, kGradientCodec) - x).norm().item<float>();
  const auto with_feedback = (sum / 100 - x).norm().item<float>();
  EXPECT_LT(with_feedback, plain / 3);
}

TEST(QuantizeWithFeedback, ForgetsBlocksThatAreNotFinite) {
  const auto codec = kGradientCodec;
  auto error = quantized(at::randn({256}), error_codec_of(codec));
  auto encoded = at::empty({encoded_bytes(256, codec)}, at::kByte);
  auto x = at::randn({256});
  x[3] = std::nan("");
  quantize_with_feedback(encoded, error, x, codec, 0.8F);
  EXPECT_TRUE(dequantized(encoded, 256, at::kFloat, codec)
                  .narrow(0, 0, 128)
                  .isnan()
                  .all()
                  .item<bool>());
  const auto kept = error_of(error, 256, codec);
  EXPECT_FALSE(kept.narrow(0, 0, 128).any().item<bool>());
  EXPECT_TRUE(kept.narrow(0, 128, 128).any().item<bool>());
}

TEST(ScaleEncoded, ScalesWhatComesBack) {
  const auto x = at::randn({1023});
  for (const auto& codec : codecs()) {
    auto encoded = quantized(x, codec);
    scale_encoded(encoded, 1023, codec, 0.25F);
    EXPECT_TRUE(at::equal(dequantized(encoded, 1023, at::kFloat, codec),
                          round_trip(x, codec) * 0.25F))
        << text_of(codec);
  }
}

TEST(Quantize, CodesAreTheSameInEverySet) {
  std::mt19937 random(7);
  const auto& baseline = loops_of(Simd::kBaseline);
  for (const auto simd : supported_simds()) {
    const auto& loops = loops_of(simd);
    for (std::int64_t numel = 1; numel < 300; ++numel) {
      const auto x = awkward_tensor(numel, at::kFloat, random, false);
      const auto* from = x.const_data_ptr<float>();
      const auto expected = baseline.range(from, numel);
      const auto range = loops.range(from, numel);
      EXPECT_EQ(range.lowest, expected.lowest);
      EXPECT_EQ(range.highest, expected.highest);
      for (const bool has_8_bits : {true, false}) {
        const auto of = [has_8_bits](const Loops& table) {
          return has_8_bits ? table.quantize_8_bits : table.quantize_4_bits;
        };
        const float lowest = has_8_bits ? -128 : 0;
        const CodeScalars scalars{0.25F, 3.0F, 1 / 3.0F, lowest,
                                  lowest + (has_8_bits ? 255 : 15)};
        auto a = at::zeros({numel}, at::kByte);
        auto b = at::zeros({numel}, at::kByte);
        of(baseline).encode(a.mutable_data_ptr<std::uint8_t>(), from, numel,
                            scalars);
        of(loops).encode(b.mutable_data_ptr<std::uint8_t>(), from, numel,
                         scalars);
        EXPECT_TRUE(at::equal(a, b)) << numel << " with " << name_of(simd);
        auto y = at::empty({numel});
        auto z = at::empty({numel});
        of(baseline).decode(y.mutable_data_ptr<float>(),
                            a.const_data_ptr<std::uint8_t>(), numel, scalars);
        of(loops).decode(z.mutable_data_ptr<float>(),
                         a.const_data_ptr<std::uint8_t>(), numel, scalars);
        EXPECT_TRUE(is_bitwise_equal(y, z)) << numel << " " << name_of(simd);
      }
    }
  }
}

TEST(Quantize, WhatDoesNotFitIsNamed) {
  const auto x = at::randn({16});
  EXPECT_THROW(encoded_bytes(16, {.bits = 5}), c10::ValueError);
  EXPECT_THROW(encoded_bytes(16, {.block_numel = 0}), c10::ValueError);
  EXPECT_THROW(encoded_bytes(16, {.block_numel = 4097}), c10::ValueError);
  EXPECT_THROW(quantized(x.to(at::kDouble)), c10::NotImplementedError);
  EXPECT_THROW(quantized(x.to(at::kInt)), c10::NotImplementedError);
  EXPECT_THROW(dequantized(quantized(x), 17, at::kFloat), c10::ValueError);
  EXPECT_THROW(dequantized(x, 16, at::kFloat), c10::ValueError);
  auto sum = at::empty({16});
  EXPECT_THROW(dequantize_sum(sum, {}, kWeightCodec), c10::ValueError);
  const auto shifted = at::zeros({21}, at::kByte).narrow(0, 1, 20);
  EXPECT_THROW(dequantize(sum, shifted, kWeightCodec), c10::ValueError);
}

}  // namespace
}  // namespace nfold::kernels
