#include "nfold/tensor_structure.h"

#include <ATen/ATen.h>
#include <ATen/core/Dict.h>
#include <ATen/core/List.h>
#include <gtest/gtest.h>

#include <vector>

namespace nfold {
namespace {

using c10::IValue;

IValue list_of(const std::vector<IValue>& values) {
  c10::List<IValue> list(c10::AnyType::get());
  for (const auto& value : values) list.push_back(value);
  return list;
}

IValue dictionary_of(const std::string& key, const IValue& value) {
  c10::Dict<IValue, IValue> dictionary(c10::StringType::get(),
                                       c10::AnyType::get());
  dictionary.insert(key, value);
  return dictionary;
}

IValue tuple_of(std::vector<IValue> values) {
  return c10::ivalue::Tuple::create(std::move(values));
}

at::Tensor tensor_in(const IValue& list, std::size_t index) {
  return list.toListRef()[index].toTensor();
}

bool is_float(const at::Tensor& tensor) {
  return at::isFloatingType(tensor.scalar_type());
}

TEST(TensorBytes, AddUpOverNestedStructures) {
  const auto value =
      list_of({at::zeros({3}),
               tuple_of({at::zeros({2}, at::kHalf),
                         dictionary_of("a", at::zeros({1}, at::kLong))}),
               5});
  EXPECT_EQ(get_tensor_bytes(value), 24);
  EXPECT_EQ(get_tensor_bytes(at::zeros({2, 2})), 16);
  EXPECT_EQ(get_tensor_bytes("text"), 0);
}

TEST(CopyToDevice, CopiesWhatMeetsTheCriterionAndRebuildsContainers) {
  const auto moved = at::ones({2});
  const auto kept = at::ones({2}, at::kLong);
  const auto value =
      list_of({moved, tuple_of({kept, 5}), dictionary_of("a", moved)});
  const auto copy = copy_to_device(value, at::kMeta, is_float);
  EXPECT_FALSE(copy.is(value));
  EXPECT_TRUE(tensor_in(copy, 0).is_meta());
  const auto& tuple = copy.toListRef()[1].toTupleRef().elements();
  EXPECT_TRUE(tuple[0].toTensor().is_same(kept));
  EXPECT_EQ(tuple[1].toInt(), 5);
  EXPECT_TRUE(copy.toListRef()[2].toGenericDict().at("a").toTensor().is_meta());
  EXPECT_TRUE(tensor_in(value, 0).is_same(moved));
  EXPECT_EQ(copy_to_device("text", at::kMeta, is_float).toStringRef(), "text");
}

TEST(MoveToDevice, LeavesAreNewTensorsUnlessTheyMeetTheCriterion) {
  const auto rebound = at::ones({2});
  const auto other = at::ones({2}, at::kLong);
  const auto value = list_of({rebound, tuple_of({other})});

  const auto all = move_to_device(value, at::kMeta);
  EXPECT_TRUE(tensor_in(all, 0).is_meta());
  EXPECT_FALSE(rebound.is_meta());

  const auto alias = rebound;
  const auto some = move_to_device(value, at::kCPU, is_float);
  EXPECT_TRUE(tensor_in(some, 0).is_same(alias));
  EXPECT_TRUE(at::equal(alias, at::ones({2})));
  const auto rest =
      move_to_device(value, at::kMeta, [](const at::Tensor&) { return false; });
  EXPECT_TRUE(
      rest.toListRef()[1].toTupleRef().elements()[0].toTensor().is_meta());
}

TEST(CompareTensorsInStructures, ListsByLengthTypeAndElements) {
  const auto a = at::tensor({1.0F, 2.0F});
  const auto same = a.clone();
  EXPECT_TRUE(compare_tensors_in_structures(list_of({a, 3, "x"}),
                                            list_of({same, 3, "x"})));
  EXPECT_FALSE(compare_tensors_in_structures(list_of({a}), list_of({a + 1})));
  EXPECT_FALSE(compare_tensors_in_structures(list_of({a}), list_of({a, a})));
  EXPECT_FALSE(compare_tensors_in_structures(list_of({a, 3}), list_of({a, 4})));
  EXPECT_FALSE(compare_tensors_in_structures(list_of({a}), list_of({3})));
  EXPECT_FALSE(compare_tensors_in_structures(list_of({a}),
                                             list_of({a.to(at::kDouble)})));
  EXPECT_FALSE(
      compare_tensors_in_structures(list_of({a}), list_of({a.view({1, 2})})));
}

TEST(CompareTensorsInStructures, DictionariesByKeysAndValues) {
  const auto a = at::tensor({1.0F, 2.0F});
  EXPECT_TRUE(compare_tensors_in_structures(dictionary_of("k", a),
                                            dictionary_of("k", a.clone())));
  EXPECT_FALSE(compare_tensors_in_structures(dictionary_of("k", a),
                                             dictionary_of("l", a)));
  EXPECT_FALSE(compare_tensors_in_structures(dictionary_of("k", a),
                                             dictionary_of("k", a + 1)));
}

TEST(CompareTensorsInStructures, OtherTypesAreNeverEqual) {
  const auto a = at::ones({2});
  EXPECT_FALSE(
      compare_tensors_in_structures(list_of({a}), dictionary_of("0", a)));
  EXPECT_FALSE(compare_tensors_in_structures(a, a));
  EXPECT_FALSE(compare_tensors_in_structures(tuple_of({a}), tuple_of({a})));
}

TEST(CompareTensorsInStructures, LooksOneLevelDeep) {
  const auto inner = list_of({at::ones({2})});
  const auto copy = list_of({at::ones({2})});
  EXPECT_TRUE(
      compare_tensors_in_structures(list_of({inner}), list_of({inner})));
  EXPECT_FALSE(
      compare_tensors_in_structures(list_of({inner}), list_of({copy})));
}

}  // namespace
}  // namespace nfold
