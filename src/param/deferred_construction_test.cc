#include "param/deferred_construction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "param/construction_test.h"
#include "param/param_state.h"
#include "testing/raised_text.h"

namespace nfold {
namespace {

using testing::HasSubstr;

// A language model in small: tied weights, a buffer, a frozen table, one tensor
// under two names, views, and tensors that are not registered.
struct ModelWithTies : torch::nn::Module {
  ModelWithTies() {
    embedding = register_module("embedding", torch::nn::Embedding(100, 96));
    block = register_module("block", torch::nn::TransformerEncoderLayer(96, 4));
    head = register_module("head", torch::nn::Linear(96, 100));
    head->weight.set_data(embedding->weight);
    mask =
        register_buffer("mask", torch::ones({200, 200}, torch::kBool).tril());
    scale = register_parameter("scale", torch::full({8192}, 0.1));
    same_scale = register_parameter("same_scale", scale);
    frozen = register_parameter("frozen", torch::randn({96, 96}),
                                /*requires_grad=*/false);
    table = torch::randn({100, 96});
    row = table[3];
    half = frozen.narrow(0, 48, 48);
  }

  NamedTensors everything() const {
    auto result = tensors_of_module(*this);
    for (const auto& [name, tensor] :
         {std::pair{"table", table}, {"row", row}, {"half", half}}) {
      result.emplace_back(name, tensor);
    }
    return result;
  }

  torch::nn::Embedding embedding = nullptr;
  torch::nn::TransformerEncoderLayer block = nullptr;
  torch::nn::Linear head = nullptr;
  at::Tensor mask, scale, same_scale, frozen, table, row, half;
};

TEST(DeferredConstructionTest, BuffersTiesAndUnregisteredTensorsBecomeReal) {
  expect_same_construction([] { return ModelWithTies().everything(); });
  const auto model = materialize(
      defer_construction([] { return std::make_shared<ModelWithTies>(); }));
  EXPECT_TRUE(model->head->weight.is_alias_of(model->embedding->weight));
  EXPECT_TRUE(model->same_scale.is_same(model->scale));
  EXPECT_TRUE(model->row.is_alias_of(model->table));
  EXPECT_TRUE(torch::equal(model->half, model->frozen.slice(0, 48)));
  const auto output = model->head(
      model->block(model->embedding(torch::arange(10)).unsqueeze(1)));
  output.sum().backward();
  EXPECT_TRUE(model->embedding->weight.grad().defined());
}

TEST(DeferredConstructionTest, ParametersAreKnownBeforeTheirValues) {
  const auto deferred =
      defer_construction([] { return std::make_shared<ModelWithTies>(); });
  std::vector<std::vector<std::string>> names;
  for (const auto& param : collect_params(*deferred.result)) {
    names.push_back(param.names);
  }
  EXPECT_THAT(names, testing::Contains(testing::ElementsAre("embedding.weight",
                                                            "head.weight")));
  EXPECT_THAT(names,
              testing::Contains(testing::ElementsAre("scale", "same_scale")));
  EXPECT_EQ(names.size(), collect_params(ModelWithTies()).size());
  // Where a shard takes over: the deferred storage goes, the tensor stays.
  auto& weight = deferred.result->embedding->weight;
  const auto flat = torch::rand({100 * 96});
  weight.set_data(flat.view({100, 96}));
  EXPECT_TRUE(weight.is_alias_of(flat) && weight.requires_grad());
}

TEST(DeferredConstructionTest, ModulesMaySwapStorages) {
  expect_same_construction([] {
    torch::nn::Linear linear(96, 96);
    auto clone =
        std::dynamic_pointer_cast<torch::nn::LinearImpl>(linear->clone());
    linear->to(torch::kDouble);
    clone->weight.set_data(clone->weight.t().contiguous());
    auto result = tensors_of_module(*linear);
    for (auto& item : tensors_of_module(*clone)) result.push_back(item);
    return result;
  });
}

TEST(DeferredConstructionTest, ConstructorsMaySeedAndBringGenerators) {
  expect_same_construction([] {
    NamedTensors result;
    torch::manual_seed(3);
    result.emplace_back("a", torch::randn({80, 96}));
    torch::manual_seed(3);
    result.emplace_back("b", torch::randn({80, 96}));
    auto generator = at::detail::createCPUGenerator(5);
    result.emplace_back("c", torch::randn({80, 96}, generator));
    generator.set_current_seed(5);
    result.emplace_back("d", torch::empty({80, 96}).uniform_(0, 1, generator));
    at::Generator process = at::detail::getDefaultCPUGenerator();
    const auto saved = process.get_state();
    torch::manual_seed(11);
    result.emplace_back("e", torch::rand({80, 96}));
    process.set_state(saved);
    result.emplace_back("f", torch::rand({80, 96}));
    // Few doubles: half of each pair of normal numbers waits for the next.
    result.emplace_back("g", torch::empty({3}, torch::kDouble).normal_());
    result.emplace_back("h", torch::empty({3}, torch::kDouble).normal_());
    return result;
  });
}

TEST(DeferredConstructionTest, ConstructorsMayReadValues) {
  expect_same_construction([] {
    NamedTensors result;
    const auto first = torch::randn({80, 96});
    const double norm = first.norm().item<double>();
    result.emplace_back("normalised", first / norm);
    auto second = torch::rand({80, 96});
    if (first.equal(second) || (first.max() < second.max()).item<bool>()) {
      second.zero_();
    }
    result.emplace_back("second", second);
    double sum = 0;
    for (int i = 0; i < 96; ++i) sum += second[1][i].item<double>();
    second[0].fill_(sum);
    result.emplace_back("third", torch::randn({80, 96}) * second.sum().item());
    return result;
  });
}

TEST(DeferredConstructionTest, ARecordedTensorChangedLaterWasReadBefore) {
  expect_same_construction([] {
    auto small = torch::ones({8});
    at::Tensor large;
    {
      ConstructionPause pause;  // so that it is real
      large = torch::ones({1 << 10, 1 << 10});
    }
    NamedTensors result;
    const auto read = [&](const char* name) {
      result.emplace_back(name, torch::randn({800, 8}) * small +
                                    large.narrow(0, 0, 800).narrow(1, 0, 8));
    };
    read("first");
    read("again");
    small.accessor<float, 1>()[2] = 9;
    read("written through a pointer");
    small.fill_(3);
    large.fill_(5);
    read("written by an operator");
    result.emplace_back("small", small);
    return result;
  });
}

TEST(DeferredConstructionTest, MemoryOfOthersIsReadAtOnce) {
  expect_same_tensor([] {
    auto weight = torch::zeros({80, 96});
    std::vector<float> values(96, 2.5f);
    weight[3].copy_(torch::from_blob(values.data(), {96}));
    values.assign(96, -1.0f);
    return weight;
  });
}

TEST(DeferredConstructionTest, TensorsFromOutsideAreWrittenAtOnce) {
  at::Tensor outside;
  expect_same_construction([&] {
    outside = torch::zeros({80, 96});
    return NamedTensors{};
  });
  const auto build = [&] {
    const auto first = torch::randn({80, 96});
    outside.copy_(first);
    outside[0].normal_();
    return NamedTensors{{"first", first},
                        {"second", torch::randn({80, 96})},
                        {"copy", outside.clone()}};
  };
  outside = torch::zeros({80, 96});
  EXPECT_EQ(expect_same_construction(build), 2);
}

TEST(DeferredConstructionTest, SmallTablesMayBeWrittenThroughPointers) {
  expect_same_construction([] {
    auto index = torch::zeros({40, 40}, torch::kLong);
    auto rows = index.accessor<std::int64_t, 2>();
    for (int i = 0; i < 40; ++i) rows[i][39 - i] = i;
    const std::vector<float> values(20000, 0.5f);
    return NamedTensors{{"index", index},
                        {"list", torch::tensor({1.5, 2.5})},
                        {"number", torch::tensor(3, torch::kLong)},
                        {"large", torch::tensor(values)}};
  });
}

TEST(DeferredConstructionTest, TablesOfZerosMayBeWrittenThroughPointers) {
  const int num_deferred = expect_same_construction([] {
    auto index = torch::zeros({144, 144}, torch::kLong);
    EXPECT_EQ(index.const_data_ptr<std::int64_t>()[144], 0);
    const auto before = index + torch::randint(9, {144, 144});
    auto rows = index.accessor<std::int64_t, 2>();
    for (int i = 0; i < 144; ++i) rows[i][143 - i] = i;
    const auto after = index + torch::randint(9, {144, 144});
    auto weight = torch::empty({80, 96});
    std::fill_n(weight.data_ptr<float>(), weight.numel(), 0.5f);
    weight[3].normal_();
    const std::vector<float> values(20000, 0.5f);
    return NamedTensors{{"index", index},
                        {"before", before},
                        {"after", after},
                        {"weight", weight},
                        {"untouched", torch::zeros({80, 96})},
                        {"large", at::tensor(values)}};
  });
  // All but "index" and "large".
  EXPECT_EQ(num_deferred, 4);
}

TEST(DeferredConstructionTest, OtherAccessThroughPointersSaysWhatToDo) {
  ConstructionScope scope;
  auto weight = torch::randn({80, 96});
  EXPECT_THAT(text_of<c10::Error>([&] { weight.data_ptr<float>(); }),
              HasSubstr("ConstructionPause"));
  EXPECT_THAT(text_of<c10::Error>([&] { weight.data_ptr<float>(); }),
              HasSubstr("randn"));
}

TEST(DeferredConstructionTest, WhatIsComputedFromARealParameterHasAHistory) {
  const auto result = materialize(defer_construction([] {
    const auto small = torch::ones({100}).set_requires_grad(true);
    return std::pair{small, torch::outer(small, small)};
  }));
  result.second.sum().backward();
  EXPECT_EQ(result.first.grad()[0].item<float>(), 200);
}

TEST(DeferredConstructionTest, GradientsAreRequiredAsEagerly) {
  const auto build = [] {
    torch::nn::Linear linear(96, 96);
    const auto product = linear->weight * 2;
    auto buffer = torch::zeros({96, 96});
    buffer.add_(linear->weight);
    return NamedTensors{{"product", product},
                        {"buffer", buffer},
                        {"detached", product.detach()},
                        {"zeros", torch::zeros_like(linear->weight)},
                        {"mask", linear->weight > 0}};
  };
  expect_same_construction(build);
  const auto result = materialize(defer_construction(build));
  EXPECT_THAT(text_of<c10::Error>([&] { result[0].second.sum().backward(); }),
              HasSubstr("aten::mul"));
  EXPECT_THAT(text_of<c10::Error>([&] { result[1].second.sum().backward(); }),
              HasSubstr("aten::add"));
}

TEST(DeferredConstructionTest, ErrorsAreThoseOfTheEagerConstruction) {
  const std::vector<std::function<void()>> wrong = {
      [] { torch::nn::Linear(96, 96)->weight.fill_(1); },
      [] { torch::nn::Linear(96, 96)->weight[0].fill_(1); },
      [] { torch::randn({80, 96}).add_(torch::randn({3, 4})); },
      [] { torch::randn({80, 96}).view({-1, 7}); },
      [] { torch::empty({80, -1}); },
  };
  for (const auto& build : wrong) {
    const std::string eager = text_of<c10::Error>(build);
    EXPECT_NE(eager, "");
    EXPECT_EQ(text_of<c10::Error>([&] {
                defer_construction([&] {
                  build();
                  return 0;
                });
              }),
              eager);
  }
}

TEST(DeferredConstructionTest, VersionsCountAsEagerly) {
  const auto build = [] {
    auto tensor = torch::empty({80, 96});
    tensor[0].normal_();
    tensor.mul_(2).add_(1);
    return tensor;
  };
  EXPECT_EQ(materialize(defer_construction(build))._version(),
            build()._version());
}

}  // namespace
}  // namespace nfold
