#include "base/hash.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "nfold/errors.h"

namespace nfold {
namespace {

TEST(Hash, MatchesPublishedValuesOfXxh3) {
  EXPECT_EQ(hex_of(hash64("")), "2d06800538d394c2");
  EXPECT_EQ(hex_of(hash128("", 0)), "99aa06d3014798d86001c324468d497f");
}

TEST(Hash, SequenceOfBytesEqualsTheirWhole) {
  std::string bytes(1000, 'x');
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<char>(i * 7);
  }
  Hasher hasher;
  hasher.add_bytes(bytes.data(), 300);
  hasher.add_bytes(bytes.data() + 300, 700);
  EXPECT_EQ(hasher.digest(), hash64(bytes));
  EXPECT_EQ(hasher.digest128(), hash128(bytes.data(), bytes.size()));
}

TEST(Hash, TextsDoNotRunTogether) {
  Hasher a;
  a.add_text("ab");
  a.add_text("c");
  Hasher b;
  b.add_text("a");
  b.add_text("bc");
  EXPECT_NE(a.digest(), b.digest());
}

TEST(Hash, TensorCountsByElementsNotByStrides) {
  const auto tensor = torch::arange(12, torch::kFloat32).view({3, 4});
  const auto turned = tensor.t().contiguous().t();
  ASSERT_FALSE(turned.is_contiguous());
  EXPECT_EQ(hash64(tensor), hash64(turned));
  EXPECT_EQ(hash128(tensor), hash128(turned));
  EXPECT_NE(hash64(tensor), hash64(tensor.t()));
  Hasher hasher;
  hasher.add_tensor(turned);
  EXPECT_EQ(hasher.digest(), hash64(tensor));
}

TEST(Hash, OneBitOfATensorCounts) {
  auto a = torch::zeros({1000});
  auto b = a.clone();
  b[999] = -0.0;
  EXPECT_NE(hash64(a), hash64(b));
}

TEST(Hash, TensorOnItsTapeAndEmptyTensorAreFine) {
  const auto tensor = torch::ones({3}).requires_grad_();
  EXPECT_EQ(hash64(tensor), hash64(tensor.detach()));
  EXPECT_EQ(hash64(torch::empty({0})), hash64(""));
}

TEST(Hash, SparseAndUndefinedTensorsAreRefused) {
  EXPECT_THROW(hash64(at::Tensor()), c10::ValueError);
  EXPECT_THROW(hash64(torch::eye(2).to_sparse()), c10::ValueError);
}

}  // namespace
}  // namespace nfold
