#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "checkpoint/test_folder.h"
#include "nfold/checkpoint.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// An embedding whose weight is also that of a head, if tied, and a buffer.
struct NetImpl : torch::nn::Module {
  explicit NetImpl(bool is_tied, std::int64_t width = 4) {
    embedding = register_parameter("embedding", at::randn({10, width}));
    head = register_parameter("head",
                              is_tied ? embedding : at::randn({10, width}));
    norm = register_module("norm", torch::nn::BatchNorm1d(width));
  }
  at::Tensor embedding, head;
  torch::nn::BatchNorm1d norm{nullptr};
};
TORCH_MODULE(Net);

class WeightsTest : public testing::Test {
 protected:
  std::string error_of_loading(torch::nn::Module& module) {
    try {
      load_weights(module, path_);
    } catch (const c10::ValueError& error) {
      return message_of(error);
    }
    return "no ValueError";
  }

  TestFolder folder_;
  const std::string path_ = folder_ / "model.safetensors";
};

void expect_equal(const torch::nn::Module& a, const torch::nn::Module& b) {
  const auto expected = b.named_parameters();
  for (const auto& item : a.named_parameters()) {
    EXPECT_TRUE(at::equal(item.value(), expected[item.key()])) << item.key();
  }
  const auto buffers = b.named_buffers();
  for (const auto& item : a.named_buffers()) {
    EXPECT_TRUE(at::equal(item.value(), buffers[item.key()])) << item.key();
  }
}

TEST_F(WeightsTest, ParametersAndBuffersComeBack) {
  Net saved(false), loaded(false);
  saved->norm->forward(at::randn({8, 4}));
  save_weights(*saved, path_);
  const void* data = loaded->head.const_data_ptr();
  load_weights(*loaded, path_);
  expect_equal(*loaded, *saved);
  EXPECT_EQ(loaded->head.const_data_ptr(), data) << "must copy in place";
  EXPECT_TRUE(loaded->head.requires_grad());
}

TEST_F(WeightsTest, TiedParameterIsWrittenOnceAndComesBackTied) {
  Net saved(true), loaded(true);
  save_weights(*saved, path_);
  const auto content = load_safetensors(path_);
  EXPECT_TRUE(content.find("embedding").defined());
  EXPECT_FALSE(content.find("head").defined());
  EXPECT_EQ(content.metadata.at(kAliasesKey), R"({"head":"embedding"})");
  load_weights(*loaded, path_);
  expect_equal(*loaded, *saved);
  EXPECT_TRUE(loaded->head.is_same(loaded->embedding));
}

TEST_F(WeightsTest, TiedFileFillsBothOfAnUntiedModel) {
  Net saved(true), loaded(false);
  save_weights(*saved, path_);
  load_weights(*loaded, path_);
  expect_equal(*loaded, *saved);
}

TEST_F(WeightsTest, TiedModelNeedsEqualValuesInTheFile) {
  Net saved(false), loaded(true);
  save_weights(*saved, path_);
  EXPECT_THAT(error_of_loading(*loaded),
              HasSubstr("head is tied to embedding in the model"));
  {
    at::NoGradGuard no_grad;
    saved->head.copy_(saved->embedding);
  }
  save_weights(*saved, path_);
  load_weights(*loaded, path_);
  expect_equal(*loaded, *saved);
}

TEST_F(WeightsTest, ViewsOfOneStorageWithEqualPlacesAreTied) {
  Net net(false);
  auto flat = at::randn({40});
  net->embedding.set_data(flat.view({10, 4}));
  net->head.set_data(flat.view({10, 4}));
  save_weights(*net, path_);
  EXPECT_FALSE(load_safetensors(path_).find("head").defined());
}

TEST_F(WeightsTest, FloatingPointDtypesAreConverted) {
  Net saved(false), loaded(false);
  save_weights(*saved, path_);
  loaded->to(at::kBFloat16);
  load_weights(*loaded, path_);
  EXPECT_EQ(loaded->head.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(loaded->head, saved->head.to(at::kBFloat16)));
}

TEST_F(WeightsTest, AllThatDoesNotFitIsListedAndNothingChanges) {
  Net loaded(false);
  auto other = at::ones({10, 5});
  save_safetensors(path_, {{"embedding", other},
                           {"head", at::ones({10, 4})},
                           {"norm.weight", at::ones({4})},
                           {"norm.bias", at::ones({4}, at::kComplexFloat)},
                           {"norm.running_mean", at::ones({4})},
                           {"surplus", at::ones({2})}});
  const auto before = loaded->head.clone();
  EXPECT_THAT(
      error_of_loading(*loaded),
      AllOf(HasSubstr(path_),
            HasSubstr("mismatch: embedding is Float[10, 4] in the model, "
                      "Float[10, 5] in the file"),
            HasSubstr("mismatch: norm.bias is Float[4]"),
            HasSubstr("missing: norm.running_var"),
            HasSubstr("missing: norm.num_batches_tracked"),
            HasSubstr("unexpected: surplus, Float[2]"),
            Not(HasSubstr("running_mean"))));
  EXPECT_TRUE(at::equal(loaded->head, before));
}

TEST_F(WeightsTest, AliasOfNothingIsAnError) {
  Net loaded(true);
  save_safetensors(path_, {{"x", at::ones({1})}},
                   {{kAliasesKey, R"({"head":"embedding"})"}});
  EXPECT_THROW(load_weights(*loaded, path_), IoError);
  save_safetensors(path_, {{"x", at::ones({1})}}, {{kAliasesKey, "[1"}});
  EXPECT_THROW(load_weights(*loaded, path_), IoError);
}

}  // namespace
}  // namespace nfold
