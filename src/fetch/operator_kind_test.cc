#include "fetch/operator_kind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <utility>

namespace nfold {
namespace {

using OperatorName = std::pair<const char*, const char*>;  // with overload

c10::OperatorHandle find_operator(const OperatorName& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.first,
                                                        name.second);
}

void expect_kind(OperatorKind kind, const std::vector<OperatorName>& names) {
  for (const auto& name : names) {
    const auto op = find_operator(name);
    EXPECT_EQ(operator_kind(op), kind) << name.first << "." << name.second;
    // Decided, then remembered.
    EXPECT_EQ(cached_operator_kind(op), kind) << name.first;
    EXPECT_EQ(cached_operator_kind(op), kind) << name.first;
  }
}

at::Tensor plus_one(const at::Tensor& x) { return x + 1; }
at::Tensor first_row(const at::Tensor& x) { return x.select(0, 0); }

TEST(OperatorKindTest, ViewsNeedSizesOnly) {
  expect_kind(OperatorKind::kMetadata, {{"aten::view", ""},
                                        {"aten::t", ""},
                                        {"aten::transpose", "int"},
                                        {"aten::slice", "Tensor"},
                                        {"aten::select", "int"},
                                        {"aten::expand", ""},
                                        {"aten::as_strided", ""},
                                        {"aten::split", "Tensor"},
                                        {"aten::unbind", "int"},
                                        {"aten::detach", ""}});
}

TEST(OperatorKindTest, LikesTakeSizesAndTypeOnly) {
  expect_kind(OperatorKind::kMetadata, {{"aten::empty_like", ""},
                                        {"aten::zeros_like", ""},
                                        {"aten::new_zeros", ""},
                                        {"aten::randn_like", ""}});
}

TEST(OperatorKindTest, SomeViewsMayHaveToCopy) {
  expect_kind(OperatorKind::kMayCopy, {{"aten::reshape", ""},
                                       {"aten::contiguous", ""},
                                       {"aten::to", "dtype"},
                                       {"aten::flatten", "using_ints"},
                                       {"aten::chunk", ""}});
}

TEST(OperatorKindTest, EverythingElseOfTorchComputes) {
  expect_kind(OperatorKind::kCompute, {{"aten::mm", ""},
                                       {"aten::linear", ""},
                                       {"aten::embedding", ""},
                                       {"aten::add", "Tensor"},
                                       {"aten::lstm", "input"},
                                       {"aten::clone", ""},
                                       {"aten::_to_copy", ""},
                                       {"aten::_local_scalar_dense", ""}});
}

TEST(OperatorKindTest, InPlaceOperatorsComputeTooAndAreNoViews) {
  expect_kind(OperatorKind::kCompute, {{"aten::add_", "Tensor"},
                                       {"aten::copy_", ""},
                                       {"aten::zero_", ""},
                                       {"aten::mul", "out"},
                                       {"aten::_foreach_mul_", "Scalar"}});
}

TEST(OperatorKindTest, SomeReplaceTheMemoryOfTheirArgument) {
  expect_kind(OperatorKind::kReplaceData, {{"aten::set_data", ""},
                                           {"aten::set_", "source_Tensor"},
                                           {"aten::resize_", ""}});
}

TEST(OperatorKindTest, OperatorsOfOthersAreForeignWhateverTheirSchemaSays) {
  expect_kind(OperatorKind::kForeign, {{"nfold_test_ops::plus_one", ""},
                                       {"nfold_test_ops::first_row", ""}});
}

TORCH_LIBRARY(nfold_test_ops, library) {
  library.def("plus_one(Tensor x) -> Tensor", &plus_one);
  library.def("first_row(Tensor(a) x) -> Tensor(a)", &first_row);
}

}  // namespace
}  // namespace nfold
