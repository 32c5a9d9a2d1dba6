// Every module of torch::nn that has parameters is built the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "param/construction_test.h"

namespace nfold {
namespace {

namespace nn = torch::nn;

struct ModuleCase {
  std::string name;
  std::function<std::shared_ptr<nn::Module>()> build;
};

// `Holder` is torch::nn::Linear and the like.
template <typename Holder, typename... Arguments>
ModuleCase module_case(const std::string& name, Arguments... arguments) {
  return {name, [=]() -> std::shared_ptr<nn::Module> {
            return Holder(arguments...).ptr();
          }};
}

// Large enough for the weights to be deferred from the start, while most biases
// are real until they are initialised.
std::vector<ModuleCase> simple_modules() {
  return {
      module_case<nn::Linear>("Linear", 96, 64),
      module_case<nn::Linear>("LinearWithoutBias",
                              nn::LinearOptions(96, 64).bias(false)),
      module_case<nn::Linear>("LinearOfManyOutputs", 3, 8192),
      module_case<nn::Linear>("SmallLinear", 3, 2),
      module_case<nn::Bilinear>("Bilinear", 16, 20, 24),
      module_case<nn::Embedding>("Embedding", 200, 64),
      module_case<nn::Embedding>("EmbeddingWithPadding",
                                 nn::EmbeddingOptions(200, 64).padding_idx(3)),
      module_case<nn::EmbeddingBag>("EmbeddingBag", 200, 64),
      module_case<nn::PReLU>("PReLU", nn::PReLUOptions().num_parameters(8192)),
      module_case<nn::AdaptiveLogSoftmaxWithLoss>(
          "AdaptiveLogSoftmaxWithLoss",
          nn::AdaptiveLogSoftmaxWithLossOptions(64, 1000, {100, 400})),
  };
}

std::vector<ModuleCase> convolutions() {
  return {
      module_case<nn::Conv1d>("Conv1d", nn::Conv1dOptions(32, 48, 5)),
      module_case<nn::Conv2d>("Conv2d",
                              nn::Conv2dOptions(16, 64, {3, 5}).groups(2)),
      module_case<nn::Conv3d>("Conv3d", nn::Conv3dOptions(8, 32, 3)),
      module_case<nn::ConvTranspose1d>("ConvTranspose1d",
                                       nn::ConvTranspose1dOptions(32, 48, 5)),
      module_case<nn::ConvTranspose2d>(
          "ConvTranspose2d", nn::ConvTranspose2dOptions(16, 64, 3).bias(false)),
      module_case<nn::ConvTranspose3d>("ConvTranspose3d",
                                       nn::ConvTranspose3dOptions(8, 32, 3)),
  };
}

std::vector<ModuleCase> norms() {
  return {
      module_case<nn::BatchNorm1d>("BatchNorm1d", 8192),
      module_case<nn::BatchNorm2d>("BatchNorm2d", 64),
      module_case<nn::BatchNorm3d>("BatchNorm3d", 8192),
      module_case<nn::InstanceNorm1d>(
          "InstanceNorm1d",
          nn::InstanceNorm1dOptions(8192).affine(true).track_running_stats(
              true)),
      module_case<nn::InstanceNorm2d>(
          "InstanceNorm2d", nn::InstanceNorm2dOptions(64).affine(true)),
      module_case<nn::InstanceNorm3d>(
          "InstanceNorm3d", nn::InstanceNorm3dOptions(8192).affine(true)),
      module_case<nn::LayerNorm>("LayerNorm", nn::LayerNormOptions({64, 128})),
      module_case<nn::GroupNorm>("GroupNorm", 4, 8192),
  };
}

std::vector<ModuleCase> recurrent_modules() {
  return {
      module_case<nn::RNN>(
          "RNN", nn::RNNOptions(64, 96).num_layers(2).bidirectional(true)),
      module_case<nn::LSTM>("LSTM", nn::LSTMOptions(64, 96).num_layers(2)),
      module_case<nn::LSTM>("LSTMWithProjection",
                            nn::LSTMOptions(64, 96).proj_size(32)),
      module_case<nn::GRU>("GRU", nn::GRUOptions(64, 96).bias(false)),
      module_case<nn::RNNCell>("RNNCell", 64, 96),
      module_case<nn::LSTMCell>("LSTMCell", 64, 96),
      module_case<nn::GRUCell>("GRUCell", 64, 96),
  };
}

std::vector<ModuleCase> transformers() {
  return {
      module_case<nn::MultiheadAttention>("MultiheadAttention", 96, 4),
      module_case<nn::MultiheadAttention>(
          "MultiheadAttentionOfThreeWidths",
          nn::MultiheadAttentionOptions(96, 4).kdim(80).vdim(64).add_bias_kv(
              true)),
      module_case<nn::TransformerEncoderLayer>("TransformerEncoderLayer", 96,
                                               4),
      module_case<nn::TransformerDecoderLayer>("TransformerDecoderLayer", 96,
                                               4),
      {"TransformerEncoder",
       [] {
         return nn::TransformerEncoder(
                    nn::TransformerEncoderOptions(
                        nn::TransformerEncoderLayer(96, 4), 2)
                        .norm(nn::AnyModule(
                            nn::LayerNorm(nn::LayerNormOptions({96})))))
             .ptr();
       }},
      {"TransformerDecoder",
       [] {
         return nn::TransformerDecoder(
                    nn::TransformerDecoderOptions(
                        nn::TransformerDecoderLayer(96, 4), 2))
             .ptr();
       }},
      module_case<nn::Transformer>("Transformer", nn::TransformerOptions(96, 4)
                                                      .num_encoder_layers(2)
                                                      .num_decoder_layers(2)
                                                      .dim_feedforward(128)),
      {"ModuleListOfSequentials",
       [] {
         nn::ModuleList list;
         for (int i = 0; i < 2; ++i) {
           list->push_back(
               nn::Sequential(nn::Linear(96, 96), nn::ReLU(),
                              nn::LayerNorm(nn::LayerNormOptions({96}))));
         }
         return list.ptr();
       }},
  };
}

class ConstructionModulesTest : public testing::TestWithParam<ModuleCase> {};

TEST_P(ConstructionModulesTest, IsBuiltBitByBitAsEagerly) {
  const auto& build = GetParam().build;
  expect_same_construction([&] { return tensors_of_module(*build()); });
}

TEST_P(ConstructionModulesTest, HasNoMemoryForLargeTensorsBefore) {
  auto deferred = defer_construction(GetParam().build);
  for (const auto& [name, tensor] : tensors_of_module(*deferred.result)) {
    if (!tensor.defined()) continue;
    EXPECT_TRUE(!has_memory(tensor) || tensor.nbytes() <= 16 << 10) << name;
  }
}

const auto kNameOf = [](const testing::TestParamInfo<ModuleCase>& info) {
  return info.param.name;
};
INSTANTIATE_TEST_SUITE_P(Simple, ConstructionModulesTest,
                         testing::ValuesIn(simple_modules()), kNameOf);
INSTANTIATE_TEST_SUITE_P(Convolutions, ConstructionModulesTest,
                         testing::ValuesIn(convolutions()), kNameOf);
INSTANTIATE_TEST_SUITE_P(Norms, ConstructionModulesTest,
                         testing::ValuesIn(norms()), kNameOf);
INSTANTIATE_TEST_SUITE_P(Recurrent, ConstructionModulesTest,
                         testing::ValuesIn(recurrent_modules()), kNameOf);
INSTANTIATE_TEST_SUITE_P(Transformers, ConstructionModulesTest,
                         testing::ValuesIn(transformers()), kNameOf);

TEST(ConstructionPretrainedTest, AnEmbeddingKeepsTheTensorItIsGiven) {
  const auto given = torch::rand({200, 64});
  auto deferred = defer_construction([&] {
    return nn::Embedding::from_pretrained(
        given, nn::EmbeddingFromPretrainedOptions().freeze(false));
  });
  EXPECT_TRUE(has_memory(deferred.result->weight));
  const auto embedding = materialize(std::move(deferred));
  EXPECT_TRUE(embedding->weight.is_alias_of(given));
  EXPECT_TRUE(embedding->weight.requires_grad());
}

TEST(ConstructionPretrainedTest, AnEmbeddingOfATensorMadeInsideIsDeferred) {
  EXPECT_EQ(expect_same_construction([] {
              return tensors_of_module(
                  *nn::Embedding::from_pretrained(torch::rand({200, 64})));
            }),
            1);
  EXPECT_EQ(expect_same_construction([] {
              return tensors_of_module(
                  *nn::EmbeddingBag::from_pretrained(torch::rand({200, 64})));
            }),
            1);
}

}  // namespace
}  // namespace nfold
