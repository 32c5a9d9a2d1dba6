#include "param/tensor_walk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

namespace nfold {
namespace {

// One tensor in each kind of place, holding 1, 2, 3 and so on.
torch::jit::Stack some_stack() {
  int next = 0;
  const auto tensor = [&] { return torch::tensor(++next); };
  torch::jit::Stack stack;
  stack.push_back(tensor());
  stack.push_back(c10::List<at::Tensor>({tensor(), tensor()}));
  c10::List<std::optional<at::Tensor>> optional;
  optional.push_back(std::nullopt);
  optional.push_back(tensor());
  stack.push_back(optional);
  stack.push_back(c10::ivalue::Tuple::create(tensor(), 7));
  c10::Dict<std::string, at::Tensor> dict;
  dict.insert("key", tensor());
  stack.push_back(dict);
  stack.push_back(at::Tensor());
  stack.push_back(c10::List<std::int64_t>({1, 2}));
  return stack;
}

std::vector<int> values_of(const torch::jit::Stack& stack) {
  std::vector<int> values;
  for (const auto& tensor : tensors_of(stack)) {
    values.push_back(tensor.item<int>());
  }
  return values;
}

TEST(TensorWalkTest, FindsTensorsWhereverTheyStand) {
  EXPECT_THAT(values_of(some_stack()), testing::ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST(TensorWalkTest, MappingLeavesTheOriginalAndTheTypes) {
  const auto stack = some_stack();
  const auto mapped =
      map_stack(stack, [](const at::Tensor& tensor) { return tensor * 10; });
  EXPECT_THAT(values_of(mapped), testing::ElementsAre(10, 20, 30, 40, 50, 60));
  EXPECT_THAT(values_of(stack), testing::ElementsAre(1, 2, 3, 4, 5, 6));
  ASSERT_EQ(mapped.size(), stack.size());
  for (std::size_t i = 0; i < stack.size(); ++i) {
    if (stack[i].isTensor()) continue;
    EXPECT_EQ(*mapped[i].type(), *stack[i].type()) << i;
  }
  EXPECT_TRUE(mapped[1].isTensorList());
  EXPECT_TRUE(mapped[2].isOptionalTensorList());
  EXPECT_FALSE(mapped[5].toTensor().defined());
}

}  // namespace
}  // namespace nfold
