#include "fetch/dispatch_interceptor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/library.h>
#include <torch/torch.h>

#include "fetch/fetch_test.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using testing::carries_key;
using ::testing::ElementsAre;
using testing::expect_same_bits;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::trained_values;
using testing::unsharded_twin;
using testing::values_of;
using testing::WatchedUnits;

void copy_params(const torch::nn::Module& from, torch::nn::Module& to) {
  const torch::NoGradGuard no_grad;
  for (const auto& item : from.named_parameters()) {
    to.named_parameters()[item.key()].copy_(item.value());
  }
}

void on_one_to_four_ranks(const std::function<void(World&)>& body) {
  for (const int num_ranks : {1, 2, 3, 4}) run_ranks(num_ranks, body);
}

TEST(DispatchInterceptorTest, AnOperatorGathersWhatItUsesAndNothingElse) {
  on_one_to_four_ranks([](World& world) {
    WatchedUnits units(world);
    const auto a = trained_values({3, 5}, 1), b = trained_values({3, 5}, 2);
    const auto a_twin = unsharded_twin(a), b_twin = unsharded_twin(b);
    const auto& a_unit = units.add("a", a);
    const auto& b_unit = units.add("b", b);
    expect_same_bits(a + 1, a_twin + 1);
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("a"));
    expect_same_bits(b * a, b_twin * a_twin);
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("b a"));
    EXPECT_EQ(b[2][4].item<float>(), b_twin[2][4].item<float>());
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("b"));
    torch::ones({3, 5}) + 1;
    EXPECT_THAT(units.handler.take_calls(), IsEmpty());
    EXPECT_EQ(a_unit.state(), UnitState::kSharded);
    EXPECT_EQ(b_unit.state(), UnitState::kSharded);
  });
}

TEST(DispatchInterceptorTest, TheHandlerIsAskedOnceForAllUnitsOfAnOperator) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto x = values_of({2, 4});
    const auto weight = trained_values({3, 4}), bias = trained_values({3});
    const auto expected =
        at::linear(x, unsharded_twin(weight), unsharded_twin(bias));
    units.add("weight", weight);
    units.add("bias", bias);
    expect_same_bits(at::linear(x, weight, bias), expected);
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("weight bias"));
    // A unit that comes several times is named once.
    torch::addcmul(weight, weight, weight.view({3, 4}));
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("weight"));
  });
}

TEST(DispatchInterceptorTest, ViewsGatherNothingAndTheirUsesGather) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto weight = trained_values({4, 6});
    const auto twin = unsharded_twin(weight);
    units.add("weight", weight);
    using View = std::function<at::Tensor(const at::Tensor&)>;
    for (const View& view : std::vector<View>{
             [](const at::Tensor& w) { return w.t(); },
             [](const at::Tensor& w) { return w.view({3, 8}); },
             [](const at::Tensor& w) { return w[2]; },
             [](const at::Tensor& w) { return w.narrow(1, 2, 3); },
             [](const at::Tensor& w) { return w.slice(0, 1, 4, 2); },
             [](const at::Tensor& w) {
               return w.unsqueeze(0).expand({2, 4, 6});
             },
             [](const at::Tensor& w) { return w.chunk(2, 1)[1]; },
             [](const at::Tensor& w) { return w.detach(); },
             [](const at::Tensor& w) { return w.reshape({-1}); },
             [](const at::Tensor& w) { return w.contiguous(); },
             [](const at::Tensor& w) { return w.to(at::kFloat); },
             [](const at::Tensor& w) { return w.t().flatten(0, -1).t(); }}) {
      const auto of_weight = view(weight);
      const bool is_view = of_weight.storage().unsafeGetStorageImpl() ==
                           weight.storage().unsafeGetStorageImpl();
      EXPECT_EQ(carries_key(of_weight), is_view);
      // Only the last one has to copy.
      EXPECT_EQ(units.handler.take_calls().size(), is_view ? 0 : 1);
      expect_same_bits(of_weight * 2, view(twin) * 2);
      EXPECT_EQ(units.handler.take_calls().size(), is_view ? 1 : 0);
    }
    expect_same_bits(values_of({3, 6}).mm(weight.t()),
                     values_of({3, 6}).mm(twin.t()));
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("weight"));
  });
}

TEST(DispatchInterceptorTest, ViewsThatHaveToCopyGather) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto weight = trained_values({4, 6});
    const auto twin = unsharded_twin(weight);
    units.add("weight", weight);
    const std::vector<at::Tensor> copies{weight.t().reshape({-1}),
                                         weight.t().contiguous(),
                                         weight.t().flatten()};
    EXPECT_THAT(units.handler.take_calls(),
                ElementsAre("weight", "weight", "weight"));
    for (const auto& copy : copies) {
      EXPECT_FALSE(carries_key(copy));
      expect_same_bits(copy.flatten(), twin.t().flatten());
    }
    expect_same_bits(weight.to(at::kDouble), twin.to(at::kDouble));
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("weight"));
  });
}

TEST(DispatchInterceptorTest, WhatIsNoViewCarriesNoKey) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto weight = trained_values({4, 6});
    units.add("weight", weight);
    EXPECT_TRUE(carries_key(weight));
    EXPECT_TRUE(carries_key(weight.t()));
    EXPECT_FALSE(carries_key(weight.clone()));
    EXPECT_FALSE(carries_key(weight.t() * 2));
    units.handler.take_calls();
    const auto like = torch::empty_like(weight);
    EXPECT_FALSE(carries_key(like));
    EXPECT_EQ(like.sizes(), weight.sizes());
    EXPECT_FALSE(carries_key(torch::zeros_like(weight.t())));
    EXPECT_FALSE(carries_key(weight.new_zeros({2})));
    EXPECT_THAT(units.handler.take_calls(), IsEmpty());
    (weight * weight).sum().backward();
    EXPECT_FALSE(carries_key(weight.grad()));
    expect_same_bits(weight.grad(), values_of({4, 6}) * 2);
  });
}

TEST(DispatchInterceptorTest, BackwardGathersWhatForwardSaved) {
  on_one_to_four_ranks([](World& world) {
    WatchedUnits units(world);
    torch::nn::Linear linear(5, 3), twin(5, 3);
    {
      const torch::NoGradGuard no_grad;
      linear->weight.copy_(values_of({3, 5}, 1));
      linear->bias.copy_(values_of({3}, 2));
    }
    copy_params(*linear, *twin);
    const auto& unit = units.add("linear", *linear);
    const auto x = trained_values({2, 5}, world.rank());
    const auto x_twin = unsharded_twin(x);
    const auto loss = torch::tanh(linear(x)).square().sum();
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("linear"));
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    loss.backward();
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("linear"));
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    const auto twin_loss = torch::tanh(twin(x_twin)).square().sum();
    twin_loss.backward();
    expect_same_bits(loss, twin_loss);
    expect_same_bits(linear->weight.grad(), twin->weight.grad());
    expect_same_bits(linear->bias.grad(), twin->bias.grad());
    expect_same_bits(x.grad(), x_twin.grad());
  });
}

TEST(DispatchInterceptorTest, ListsOfTensorsAreSearched) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto a = trained_values({2, 3}, 1), b = trained_values({4, 3}, 2);
    const auto plain = values_of({1, 3}, 3);
    const auto expected =
        torch::cat({unsharded_twin(a), plain, unsharded_twin(b)});
    units.add("a", a);
    units.add("b", b);
    expect_same_bits(torch::cat({a, plain, b}), expected);
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("a b"));
    const auto sums = torch::_foreach_add({plain, a.view({3, 2})}, 1);
    expect_same_bits(sums[1], values_of({2, 3}, 1).view({3, 2}) + 1);
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("a"));
  });
}

TEST(DispatchInterceptorTest, ListsOfOptionalTensorsAreSearched) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto rows = torch::tensor({4, 0, 2, 2}, at::kLong);
    const auto rows_twin = rows.clone();
    const auto table = trained_values({3, 5});
    units.add("rows", rows);
    units.add("table", table);
    expect_same_bits(values_of({3, 5}).index({torch::indexing::Slice(), rows}),
                     values_of({3, 5}).index_select(1, rows_twin));
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("rows"));
    expect_same_bits(table.index({torch::indexing::Slice(), rows}),
                     values_of({3, 5}).index_select(1, rows_twin));
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("table rows"));
  });
}

TEST(DispatchInterceptorTest, RecurrentLayersTrainAsIfUnsharded) {
  run_ranks(3, [](World& world) {
    WatchedUnits units(world);
    const auto options =
        torch::nn::LSTMOptions(4, 5).num_layers(2).bidirectional(true);
    torch::nn::LSTM lstm(options), twin(options);
    {
      const torch::NoGradGuard no_grad;
      double phase = 0;
      for (auto& param : lstm->parameters()) {
        param.copy_(values_of(param.sizes(), ++phase));
      }
    }
    copy_params(*lstm, *twin);
    const auto& unit = units.add("lstm", *lstm);
    const auto x = trained_values({6, 2, 4}, world.rank());
    const auto x_twin = unsharded_twin(x);
    const auto loss = std::get<0>(lstm(x)).square().sum();
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("lstm"));
    loss.backward();
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    const auto twin_loss = std::get<0>(twin(x_twin)).square().sum();
    twin_loss.backward();
    expect_same_bits(loss, twin_loss);
    expect_same_bits(x.grad(), x_twin.grad());
    for (const auto& item : lstm->named_parameters()) {
      SCOPED_TRACE(item.key());
      expect_same_bits(item.value().grad(),
                       twin->named_parameters()[item.key()].grad());
    }
  });
}

// A parameter that an operator uses without having it as an argument.
thread_local at::Tensor hidden_param;

at::Tensor add_hidden(const at::Tensor& x) { return x * 2 + hidden_param; }
// Another tensor of the same memory, as the schema does not tell.
at::Tensor same_memory(const at::Tensor& x) {
  return torch::empty({0}).set_(x.storage(), x.storage_offset(), x.sizes(),
                                x.strides());
}

TORCH_LIBRARY_FRAGMENT(nfold_test_ops, library) {
  library.def("add_hidden(Tensor x) -> Tensor", &add_hidden);
  library.def("same_memory(Tensor x) -> Tensor", &same_memory);
}

at::Tensor call_custom(const char* name, const at::Tensor& x) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow(name, "")
      .typed<at::Tensor(const at::Tensor&)>()
      .call(x);
}

TEST(DispatchInterceptorTest, CustomOperatorsMayUseOtherParametersInside) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto a = trained_values({3}, 1), b = trained_values({3}, 2);
    const auto expected = values_of({3}, 1) * 2 + values_of({3}, 2);
    units.add("a", a);
    units.add("b", b);
    hidden_param = b;
    expect_same_bits(call_custom("nfold_test_ops::add_hidden", a), expected);
    // The argument is whole for all of the call, and asked for again inside.
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("a", "a", "b"));
    EXPECT_EQ(units.handler.peak_pinned(), 2);
    expect_same_bits(
        call_custom("nfold_test_ops::add_hidden", values_of({3}, 1)), expected);
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("b"));
    hidden_param.reset();
  });
}

TEST(DispatchInterceptorTest, AliasesThatTheSchemaHidesAreWatchedToo) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto weight = trained_values({3});
    units.add("weight", weight);
    const torch::NoGradGuard no_grad;
    const auto same = call_custom("nfold_test_ops::same_memory", weight);
    EXPECT_TRUE(same.is_alias_of(weight) && carries_key(same));
    units.handler.take_calls();
    expect_same_bits(same + 1, values_of({3}) + 1);
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("weight"));
  });
}

// x * weight, with a backward of its own.
struct ScaledByFunction : torch::autograd::Function<ScaledByFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* context,
                            const at::Tensor& x, const at::Tensor& weight) {
    context->save_for_backward({x, weight});
    return x * weight;
  }
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context,
      const torch::autograd::variable_list& grads) {
    const auto saved = context->get_saved_variables();
    return {grads[0] * saved[1], grads[0] * saved[0]};
  }
};

TEST(DispatchInterceptorTest, CustomAutogradFunctionsTrainAsIfUnsharded) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto weight = trained_values({4}, 1);
    const auto twin = unsharded_twin(weight);
    const auto& unit = units.add("weight", weight);
    const auto x = trained_values({4}), x_twin = trained_values({4});
    ScaledByFunction::apply(x, weight).square().sum().backward();
    EXPECT_THAT(units.handler.take_calls(), ElementsAre("weight", "weight"));
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    ScaledByFunction::apply(x_twin, twin).square().sum().backward();
    expect_same_bits(weight.grad(), twin.grad());
    expect_same_bits(x.grad(), x_twin.grad());
  });
}

TEST(DispatchInterceptorTest, ResidentUnitsRunAtFullSpeedAndAreFound) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto weight = trained_values({3});
    auto options = testing::watched_options(world, "weight", weight);
    options.is_resident = true;
    auto& unit = units.add({{"weight", {"weight"}, {weight}}}, options);
    EXPECT_FALSE(carries_key(weight));
    expect_same_bits(weight + 1, values_of({3}) + 1);
    EXPECT_THAT(units.handler.take_calls(), IsEmpty());
    EXPECT_EQ(dispatch_interceptor().find(weight).unit, &unit);
    EXPECT_NO_THROW(dispatch_interceptor().verify(unit));
    weight.set_data(torch::ones({3}));
    EXPECT_THROW(dispatch_interceptor().verify(unit), c10::ValueError);
  });
}

TEST(DispatchInterceptorTest, WhatTheHandlerRaisesReachesForwardAndBackward) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto weight = trained_values({3, 3});
    units.add("weight", weight);
    const auto x = trained_values({2, 3});
    units.handler.fail_with("a rank is gone");
    EXPECT_THAT(text_of<c10::Error>([&] { x.mm(weight); }),
                HasSubstr("a rank is gone"));
    EXPECT_EQ(units.handler.num_pinned(), 0);
    units.handler.fail_with("");
    const auto loss = x.mm(weight).square().sum();
    units.handler.fail_with("a rank is gone too");
    EXPECT_THAT(
        text_of<c10::Error>([&] { loss.backward({}, /*retain_graph=*/true); }),
        HasSubstr("a rank is gone too"));
    EXPECT_EQ(units.handler.num_pinned(), 0);
    units.handler.fail_with("");
    EXPECT_NO_THROW(loss.backward());
    EXPECT_EQ(units.handler.num_pinned(), 0);
  });
}

TEST(DispatchInterceptorTest, AnOperatorThatFailsLeavesNoPins) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    const auto weight = trained_values({3, 3});
    const auto& unit = units.add("weight", weight);
    EXPECT_THROW(values_of({2, 4}).mm(weight), c10::Error);
    EXPECT_EQ(units.handler.num_pinned(), 0);
    EXPECT_EQ(unit.state(), UnitState::kSharded);
    expect_same_bits(values_of({2, 3}).mm(weight),
                     values_of({2, 3}).mm(values_of({3, 3})));
  });
}

TEST(DispatchInterceptorTest, WorkerThreadsMayUseParameters) {
  run_ranks(1, [](World& world) {
    const int num_threads = at::get_num_threads();
    at::set_num_threads(4);
    WatchedUnits units(world);
    const auto weight = trained_values({64, 16});
    const auto twin = unsharded_twin(weight).detach();
    const auto& unit = units.add("weight", weight);
    auto sums = torch::zeros({64});
    auto* sum_of_row = sums.mutable_data_ptr<float>();
    at::parallel_for(0, 64, 1, [&](std::int64_t begin, std::int64_t end) {
      const torch::NoGradGuard no_grad;
      for (auto row = begin; row < end; ++row) {
        sum_of_row[row] = weight[row].sum().item<float>();
      }
    });
    at::set_num_threads(num_threads);
    for (std::int64_t row = 0; row < 64; ++row) {
      EXPECT_EQ(sum_of_row[row], twin[row].sum().item<float>());
    }
    EXPECT_EQ(units.handler.take_calls().size(), 64);
    EXPECT_EQ(units.handler.num_pinned(), 0);
    EXPECT_EQ(unit.state(), UnitState::kSharded);
  });
}

}  // namespace
}  // namespace nfold
