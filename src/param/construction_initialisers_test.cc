// Initialisers, and what constructors do with tensors by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "param/construction_test.h"

namespace nfold {
namespace {

namespace init = torch::nn::init;

struct InitialiserCase {
  std::string name;
  std::vector<std::int64_t> sizes;
  std::function<void(at::Tensor)> run;
};

std::vector<InitialiserCase> initialisers() {
  return {
      {"XavierUniform", {80, 96}, [](auto t) { init::xavier_uniform_(t, 2); }},
      {"XavierNormal", {80, 96}, [](auto t) { init::xavier_normal_(t); }},
      {"KaimingUniform", {80, 96}, [](auto t) { init::kaiming_uniform_(t); }},
      {"KaimingNormal",
       {64, 16, 3, 3},
       [](auto t) { init::kaiming_normal_(t, 0, torch::kFanOut); }},
      {"OrthogonalWide", {80, 96}, [](auto t) { init::orthogonal_(t, 1.5); }},
      {"OrthogonalTall", {64, 5, 3, 3}, [](auto t) { init::orthogonal_(t); }},
      {"Dirac", {64, 64, 5}, [](auto t) { init::dirac_(t); }},
      {"Dirac2d", {32, 32, 3, 3}, [](auto t) { init::dirac_(t); }},
      {"Eye", {80, 96}, [](auto t) { init::eye_(t); }},
      {"Constant", {80, 96}, [](auto t) { init::constant_(t, 0.3); }},
      {"Ones", {80, 96}, [](auto t) { init::ones_(t); }},
      {"Sparse", {96, 60}, [](auto t) { init::sparse_(t, 0.25, 0.02); }},
      {"Normal", {80, 96}, [](auto t) { init::normal_(t, 1, 0.5); }},
      {"NormalOfFewElements", {7}, [](auto t) { init::normal_(t, 1, 0.5); }},
      {"TruncatedNormal",
       {80, 96},
       [](at::Tensor t) {
         torch::NoGradGuard no_grad;
         t.uniform_(-0.95, 0.95).erfinv_().mul_(0.02 * std::sqrt(2.0));
         t.add_(0.1).clamp_(-0.04, 0.14);
       }},
      {"Bernoulli", {80, 96}, [](at::Tensor t) { t.bernoulli_(0.25); }},
      {"BernoulliOfTensor",
       {80, 96},
       [](at::Tensor t) { t.bernoulli_(torch::rand({96})); }},
      {"Exponential", {80, 96}, [](at::Tensor t) { t.exponential_(2); }},
      {"Random", {80, 96}, [](at::Tensor t) { t.random_(5, 100); }},
      {"Dropout",
       {80, 96},
       [](at::Tensor t) {
         t.copy_(torch::dropout(torch::ones_like(t), 0.5, true));
       }},
      {"RowByRow",
       {80, 96},
       [](at::Tensor t) {
         for (std::int64_t i = 0; i < t.size(0); ++i) t[i].uniform_(-i, i);
         t.select(1, 5).zero_();
         t.narrow(0, 3, 2).narrow(1, 7, 9).normal_();
       }},
      {"ThroughTransposedView",
       {80, 96},
       [](at::Tensor t) { t.zero_().t().view({-1, 12, 80})[3].normal_(); }},
      {"IndexedWrites",
       {80, 96},
       [](at::Tensor t) {
         t.zero_();
         const auto rows = torch::randperm(80).slice(0, 0, 10);
         t.index_put_({rows}, torch::randn({10, 96}, t.options()));
         t.masked_fill_(t > 1, 0.5);
         t.index_put_({t < -1}, torch::rand({}, t.options()));
       }},
  };
}

class InitialisersTest : public testing::TestWithParam<InitialiserCase> {};

TEST_P(InitialisersTest, GivesTheSameBits) {
  const auto& [name, sizes, run] = GetParam();
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    expect_same_tensor([&] {
      auto tensor = torch::empty(sizes, dtype);
      run(tensor);
      return tensor;
    });
    // After one that will be overwritten, but whose draws count.
    expect_same_tensor([&] {
      auto tensor = torch::randn(sizes, dtype);
      run(tensor);
      return tensor;
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, InitialisersTest, testing::ValuesIn(initialisers()),
    [](const testing::TestParamInfo<InitialiserCase>& info) {
      return info.param.name;
    });

TEST(ConstructionTensorsTest, OrdinaryOperatorsGiveTheSameBits) {
  const int num_deferred = expect_same_construction([] {
    NamedTensors tensors;
    const auto add = [&](const char* name, at::Tensor tensor) {
      tensors.emplace_back(name, std::move(tensor));
    };
    // Tables of positions and masks, as transformers make them.
    const auto position = torch::arange(300, torch::kFloat).unsqueeze(1);
    const auto rate =
        torch::exp(torch::arange(0, 64, 2, torch::kFloat) * -0.14);
    auto table = torch::zeros({300, 64});
    table.slice(1, 0, 64, 2).copy_(torch::sin(position * rate));
    table.slice(1, 1, 64, 2).copy_(torch::cos(position * rate));
    add("table", table);
    add("mask", torch::ones({200, 200}, torch::kBool).tril());
    add("upper", torch::triu(torch::full({100, 100}, -1e30f), 1));
    // Results with several tensors, lists, and shapes that depend on values.
    const auto weight = torch::randn({60, 80});
    const auto [q, r] = torch::linalg_qr(weight);
    add("q", q);
    add("r", r);
    const auto parts = weight.split(20, 1);
    add("cat", torch::cat({parts[2], parts[0]}, 1));
    add("stack", torch::stack({parts[1], parts[3]}));
    add("positive", weight.index({weight > 0}));
    add("sorted", std::get<0>(weight.sort(1)));
    add("einsum", torch::einsum("ij,kj->ik", {weight, weight}));
    add("complex",
        torch::view_as_real(torch::polar(weight.abs(), weight).conj() * 2));
    auto out = torch::empty({0});
    torch::mul_out(out, weight, weight);
    add("out", out);
    return tensors;
  });
  EXPECT_EQ(num_deferred, 12);
}

TEST(ConstructionTensorsTest, OperatorsFollowTheDefaultDtypeOfTheirTime) {
  const auto previous = torch::get_default_dtype();
  expect_same_tensor([&] {
    torch::set_default_dtype(torch::scalarTypeToTypeMeta(torch::kDouble));
    auto tensor = torch::randn({80, 96}) + torch::randint(9, {80, 96}) / 7;
    torch::set_default_dtype(previous);
    return tensor;
  });
}

TEST(ConstructionTensorsTest, DeferredTensorsMayGrowAndShrink) {
  expect_same_tensor([] {
    auto tensor = torch::randn({30, 200});
    tensor.resize_({40, 200}).fill_(0.5);
    tensor.resize_({20, 100});
    return tensor;
  });
}

TEST(ConstructionTensorsTest, ASmallTensorMayGrow) {
  expect_same_tensor([] {
    auto tensor = torch::ones({4});
    tensor.slice(0, 2).normal_();
    tensor.resize_({80, 96});
    tensor.slice(0, 1).zero_();
    tensor[0].slice(0, 4).uniform_();
    return tensor;
  });
}

TEST(ConstructionTensorsTest, ListsOfTensorsAreChangedTogether) {
  expect_same_construction([] {
    std::vector<at::Tensor> tensors = {torch::randn({80, 96}), torch::ones(3)};
    torch::_foreach_mul_(tensors, 2);
    torch::_foreach_add_(tensors, {tensors[1].sum(), tensors[0].sum()});
    return NamedTensors{{"large", tensors[0]}, {"small", tensors[1]}};
  });
}

TEST(ConstructionTensorsTest, InferenceTensorsAreDeferredToo) {
  EXPECT_EQ(expect_same_construction([] {
              c10::InferenceMode inference;
              auto tensor = torch::randn({80, 96});
              tensor[3].zero_();
              return NamedTensors{{"tensor", tensor}};
            }),
            1);
}

TEST(ConstructionTensorsTest, InPlaceViewsKeepTheirStrides) {
  expect_same_tensor([] {
    auto tensor = torch::randn({80, 96});
    tensor.t_().unsqueeze_(0).squeeze_(0);
    tensor.mul_(torch::arange(80));
    return tensor;
  });
}

}  // namespace
}  // namespace nfold
