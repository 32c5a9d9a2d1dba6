#include "kernels/simd.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/kernel_testing.h"

namespace nfold::kernels {
namespace {

constexpr at::ScalarType kDtypes[kNumElements] = {
    at::kFloat, at::kDouble, at::kHalf, at::kBFloat16,
    at::kChar,  at::kByte,   at::kInt,  at::kLong};
constexpr std::int64_t kSimdNumel = 1000;

// Runs loops over [0, kSimdNumel) of tensors.
using Operation = std::function<void(const Loops&, std::vector<at::Tensor>&,
                                     std::int64_t begin, std::int64_t numel)>;

void* at_index(const at::Tensor& tensor, std::int64_t index) {
  return static_cast<char*>(tensor.data_ptr()) + index * tensor.element_size();
}

std::vector<at::Tensor> copy_of(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> copies;
  for (const at::Tensor& tensor : tensors) copies.push_back(tensor.clone());
  return copies;
}

// The baseline, element by element, against every instruction set with random
// splits.
void expect_same_bits(const char* name, const std::vector<at::Tensor>& tensors,
                      const Operation& operation, std::mt19937& random) {
  std::vector<at::Tensor> expected = copy_of(tensors);
  for (std::int64_t i = 0; i < kSimdNumel; ++i) {
    operation(loops_of(Simd::kBaseline), expected, i, 1);
  }
  for (const Simd simd : supported_simds()) {
    for (int repetition = 0; repetition < 3; ++repetition) {
      std::vector<at::Tensor> actual = copy_of(tensors);
      const std::int64_t longest = repetition == 0 ? kSimdNumel : 150;
      for (std::int64_t begin = 0; begin < kSimdNumel;) {
        const std::int64_t wanted =
            repetition == 0 ? kSimdNumel : 1 + random() % longest;
        const std::int64_t numel = std::min(wanted, kSimdNumel - begin);
        operation(loops_of(simd), actual, begin, numel);
        begin += numel;
      }
      for (std::size_t i = 0; i < tensors.size(); ++i) {
        EXPECT_TRUE(is_bitwise_equal(actual[i], expected[i]))
            << name << " tensor " << i << " with " << name_of(simd);
      }
    }
  }
}

TEST(Simd, ReductionsHaveTheSameBitsInEverySet) {
  std::mt19937 random(1);
  for (int e = 0; e < kNumElements; ++e) {
    const at::ScalarType wide =
        at::isReducedFloatingType(kDtypes[e]) ? at::kFloat : kDtypes[e];
    const std::vector<at::Tensor> elements{
        at::zeros({kSimdNumel}, wide),
        awkward_tensor(kSimdNumel, kDtypes[e], random),
        awkward_tensor(kSimdNumel, kDtypes[e], random)};
    const std::vector<at::Tensor> wides{
        awkward_tensor(kSimdNumel, wide, random),
        awkward_tensor(kSimdNumel, wide, random),
        awkward_tensor(kSimdNumel, wide, random)};
    for (const bool is_sum : {true, false}) {
      const auto of = [is_sum, e](const Loops& loops) {
        return is_sum ? loops.sum[e] : loops.max[e];
      };
      expect_same_bits(
          "of_elements", elements,
          [&of](const Loops& loops, auto& t, auto begin, auto numel) {
            of(loops).of_elements(at_index(t[0], begin), at_index(t[1], begin),
                                  at_index(t[2], begin), numel);
          },
          random);
      expect_same_bits(
          "of_wide", wides,
          [&of](const Loops& loops, auto& t, auto begin, auto numel) {
            of(loops).of_wide(at_index(t[0], begin), at_index(t[1], begin),
                              at_index(t[2], begin), numel);
          },
          random);
    }
  }
}

TEST(Simd, ConversionsHaveTheSameBitsInEverySet) {
  std::mt19937 random(2);
  for (int from = 0; from < kNumFloatElements; ++from) {
    for (int to = 0; to < kNumFloatElements; ++to) {
      const std::vector<at::Tensor> tensors{
          awkward_tensor(kSimdNumel, kDtypes[to], random),
          awkward_tensor(kSimdNumel, kDtypes[from], random)};
      expect_same_bits(
          "scaled_cast", tensors,
          [=](const Loops& loops, auto& t, auto begin, auto numel) {
            loops.scaled_cast[from][to](at_index(t[0], begin),
                                        at_index(t[1], begin), 0.3, numel);
          },
          random);
      expect_same_bits(
          "accumulate", tensors,
          [=](const Loops& loops, auto& t, auto begin, auto numel) {
            loops.accumulate[to][from](at_index(t[0], begin),
                                       at_index(t[1], begin), 0.3, numel);
          },
          random);
    }
  }
}

TEST(Simd, OptimizersHaveTheSameBitsInEverySet) {
  std::mt19937 random(3);
  const AdamScalars adam{.grad_decay = 0.1,
                         .square_decay = 0.001,
                         .beta1 = 0.9,
                         .beta2 = 0.999,
                         .eps = 1e-8,
                         .step_size = 0.01,
                         .inverse_root_correction = 3.3,
                         .weight_factor = 0.999,
                         .l2 = 0.02};
  const SgdScalars sgd{.lr = 0.1,
                       .momentum = 0.9,
                       .grad_factor = 0.8,
                       .weight_decay = 0.01,
                       .is_first = false,
                       .is_nesterov = true};
  const AdagradScalars adagrad{.lr = 0.1, .eps = 1e-10, .weight_decay = 0.01};
  const LionScalars lion{
      .lr = 0.1, .beta1 = 0.9, .beta2 = 0.99, .weight_factor = 0.99};
  for (int type = 0; type < 2; ++type) {
    std::vector<at::Tensor> tensors;
    for (int i = 0; i < 4; ++i) {
      tensors.push_back(
          awkward_tensor(kSimdNumel, kDtypes[type], random, false));
    }
    tensors[3].abs_();
    const auto pointers = [](const std::vector<at::Tensor>& t, auto begin) {
      return std::vector<void*>{at_index(t[0], begin), at_index(t[1], begin),
                                at_index(t[2], begin), at_index(t[3], begin)};
    };
    expect_same_bits(
        "adam", tensors,
        [&](const Loops& loops, auto& t, auto begin, auto numel) {
          const auto p = pointers(t, begin);
          loops.optimizer[type].adam(adam, p[0], p[1], p[2], p[3], numel);
        },
        random);
    expect_same_bits(
        "sgd", tensors,
        [&](const Loops& loops, auto& t, auto begin, auto numel) {
          const auto p = pointers(t, begin);
          loops.optimizer[type].sgd(sgd, p[0], p[1], numel);
        },
        random);
    expect_same_bits(
        "sgd_momentum", tensors,
        [&](const Loops& loops, auto& t, auto begin, auto numel) {
          const auto p = pointers(t, begin);
          loops.optimizer[type].sgd_momentum(sgd, p[0], p[1], p[2], numel);
        },
        random);
    expect_same_bits(
        "adagrad", tensors,
        [&](const Loops& loops, auto& t, auto begin, auto numel) {
          const auto p = pointers(t, begin);
          loops.optimizer[type].adagrad(adagrad, p[0], p[1], p[3], numel);
        },
        random);
    expect_same_bits(
        "lion", tensors,
        [&](const Loops& loops, auto& t, auto begin, auto numel) {
          const auto p = pointers(t, begin);
          loops.optimizer[type].lion(lion, p[0], p[1], p[2], numel);
        },
        random);
  }
}

TEST(Simd, SquareSumsHaveTheSameBitsInEverySet) {
  std::mt19937 random(4);
  for (int e = 0; e < kNumFloatElements; ++e) {
    for (int repetition = 0; repetition < 40; ++repetition) {
      const std::int64_t numel = random() % 300;
      const std::int64_t offset = random() % 16;
      const at::Tensor x =
          awkward_tensor(numel + offset, kDtypes[e], random, false);
      const double expected = loops_of(Simd::kBaseline)
                                  .square[e](at_index(x, offset), numel)
                                  .value();
      for (const Simd simd : supported_simds()) {
        const double actual =
            loops_of(simd).square[e](at_index(x, offset), numel).value();
        EXPECT_EQ(std::bit_cast<std::uint64_t>(actual),
                  std::bit_cast<std::uint64_t>(expected))
            << kDtypes[e] << " " << numel << " with " << name_of(simd);
      }
    }
  }
}

TEST(Simd, IsChosenByName) {
  EXPECT_EQ(simd_of("baseline"), Simd::kBaseline);
  EXPECT_EQ(simd_of(""), supported_simds().back());
  try {
    simd_of("sse9");
    FAIL() << "an unknown name was accepted";
  } catch (const c10::ValueError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("NFOLD_SIMD"), std::string::npos);
    EXPECT_NE(text.find("baseline"), std::string::npos);
    EXPECT_NE(text.find("'sse9'"), std::string::npos);
  }
}

}  // namespace
}  // namespace nfold::kernels
