#include "nfold/graph_replay.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "testing/raised_text.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kSumSite = 0;
constexpr int kOtherSite = 1;

at::Tensor sum_of(GraphReplay& graph, const std::vector<at::Tensor>& tensors,
                  const void* identity = &kSumSite) {
  return graph.run({identity, tensors}, [&] {
    auto total = at::zeros({}, at::kDouble);
    for (const auto& tensor : tensors) total.add_(tensor.sum());
    return std::vector<at::Tensor>{total};
  })[0];
}

TEST(GraphReplay, LaterCallsSeeNewValuesAtTheSameAddresses) {
  GraphReplay graph;
  const auto input = at::tensor({1.0F, 2.0F});
  const auto first = sum_of(graph, {input});
  EXPECT_EQ(first.item<double>(), 3);
  input.fill_(5);
  const auto second = sum_of(graph, {input});
  EXPECT_EQ(second.item<double>(), 10);
  EXPECT_EQ(second.const_data_ptr(), first.const_data_ptr());
  EXPECT_EQ(graph.num_graphs(), 1);
  EXPECT_EQ(graph.num_replays(), 1);
}

TEST(GraphReplay, RunsInPlaceFunctionsOncePerCall) {
  GraphReplay graph;
  const auto tensor = at::tensor({1.0F});
  for (int i = 0; i < 3; ++i) {
    graph.run({&kSumSite, {tensor}}, [&] {
      tensor.mul_(2);
      return std::vector<at::Tensor>{};
    });
  }
  EXPECT_EQ(tensor.item<float>(), 8);
}

TEST(GraphReplay, ATensorSomewhereElseIsNamed) {
  GraphReplay graph;
  const auto a = at::zeros({2});
  const auto b = at::zeros({3});
  sum_of(graph, {a, b});
  const auto moved = at::zeros({3});
  EXPECT_THAT(text_of<c10::ValueError>([&] { sum_of(graph, {a, moved}); }),
              AllOf(HasSubstr("input 1 of shape [3]"), HasSubstr("address"),
                    HasSubstr("reset()")));
}

TEST(GraphReplay, AnotherDtypeOrStrideIsNamed) {
  GraphReplay graph;
  const auto matrix = at::zeros({2, 2});
  sum_of(graph, {matrix});
  EXPECT_THAT(text_of<c10::ValueError>(
                  [&] { sum_of(graph, {matrix.to(at::kDouble)}); }),
              AllOf(HasSubstr("input 0"), HasSubstr("dtype Float"),
                    HasSubstr("Double")));
  EXPECT_THAT(text_of<c10::ValueError>([&] { sum_of(graph, {matrix.t()}); }),
              AllOf(HasSubstr("input 0"), HasSubstr("strides [2, 1]"),
                    HasSubstr("[1, 2]")));
}

TEST(GraphReplay, GraphsBelongToIdentityConstantsAndShapesNotToANameOrOrder) {
  GraphReplay graph;
  const auto tensor = at::tensor({1.0F, 2.0F});
  sum_of(graph, {tensor});
  sum_of(graph, {at::ones({3})});
  // Another function of the same inputs.
  graph.run({&kOtherSite, {tensor}},
            [&] { return std::vector<at::Tensor>{tensor.max()}; });
  for (const double p : {1.0, 2.0}) {
    graph.run({&kOtherSite, {tensor}, {p}},
              [&] { return std::vector<at::Tensor>{tensor.pow(p)}; });
  }
  EXPECT_EQ(graph.num_graphs(), 5);
  EXPECT_EQ(graph.num_replays(), 0);
  EXPECT_EQ(sum_of(graph, {tensor}).item<double>(), 3);
  EXPECT_EQ(graph.num_replays(), 1);
}

TEST(GraphReplay, ResetForgetsTheTensors) {
  GraphReplay graph;
  sum_of(graph, {at::ones({4})});
  const auto elsewhere = at::full({4}, 2.0F);
  graph.reset();
  EXPECT_EQ(graph.num_graphs(), 0);
  EXPECT_EQ(sum_of(graph, {elsewhere}).item<double>(), 8);
}

TEST(GraphReplay, OtherOperatorsThanTheFirstTimeAreAnError) {
  GraphReplay graph;
  const auto tensor = at::tensor({1.0F});
  const auto run = [&](bool is_doubled) {
    graph.run({&kSumSite, {tensor}}, [&] {
      if (is_doubled) {
        tensor.mul_(2);
      } else {
        tensor.add_(1);
      }
      return std::vector<at::Tensor>{};
    });
  };
  run(true);
  EXPECT_THAT(text_of<c10::ValueError>([&] { run(false); }),
              AllOf(HasSubstr("aten::mul_"), HasSubstr("aten::add_")));
}

TEST(GraphReplay, AHostThatReadsAValueCannotBeCaptured) {
  GraphReplay graph;
  const auto tensor = at::tensor({1.0F});
  EXPECT_THAT(text_of<c10::ValueError>([&] {
                graph.run({&kSumSite, {tensor}}, [&] {
                  tensor.mul_(tensor.item<float>());
                  return std::vector<at::Tensor>{};
                });
              }),
              HasSubstr("on the host"));
  EXPECT_EQ(graph.num_graphs(), 0);
}

TEST(GraphReplay, AnUndefinedInputIsAnError) {
  GraphReplay graph;
  EXPECT_THROW(sum_of(graph, {at::Tensor()}), c10::ValueError);
}

}  // namespace
}  // namespace nfold
