// What interception refuses, and what verify finds out later.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "fetch/dispatch_interceptor.h"
#include "fetch/fetch_test.h"
#include "testing/raised_text.h"
#include "testing/thread_world.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using testing::carries_key;
using ::testing::ElementsAre;
using testing::expect_same_bits;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::trained_values;
using testing::unsharded_twin;
using testing::values_of;
using testing::WatchedUnits;

// Units "first" of w0 and w1, "second" of v.
struct WriteTargets {
  explicit WriteTargets(World& world) : units(world) {
    first = &units.add(
        {{"block.w0", {"block.w0"}, {w0}}, {"block.w1", {"block.w1"}, {w1}}},
        testing::watched_options(world, "first", w0));
    units.add("v", v);
  }

  at::Tensor w0 = trained_values({4, 3}, 1);
  at::Tensor w1 = trained_values({4, 3}, 2);
  at::Tensor v = trained_values({4, 3}, 3);
  WatchedUnits units;
  ShardedUnit* first = nullptr;
};

TEST(InterceptorMisuseTest, WritingIsAnErrorThatNamesTheParameter) {
  run_ranks(2, [](World& world) {
    WriteTargets targets(world);
    auto w1 = targets.w1;
    const auto plain = torch::ones({4, 3});
    using Write = std::function<void()>;
    for (const auto& [name, write] : std::vector<std::pair<std::string, Write>>{
             {"aten::add_", [&] { w1.add_(plain); }},
             {"aten::zero_", [&] { w1.zero_(); }},
             {"aten::copy_", [&] { w1.copy_(plain); }},
             {"aten::mul", [&] { at::mul_out(w1, plain, plain); }},
             {"aten::fill_", [&] { w1.detach()[3].fill_(1); }},
             {"aten::_foreach_mul_",
              [&] { at::_foreach_mul_({plain.clone(), w1}, 2); }},
             {"aten::embedding_renorm_", [&] {
                at::embedding_renorm_(w1, torch::tensor({1}), 0.1, 2);
              }}}) {
      SCOPED_TRACE(name);
      for (const bool has_grad_mode : {false, true}) {
        const at::AutoGradMode grad_mode(has_grad_mode);
        EXPECT_THAT(text_of<c10::ValueError>(write),
                    AllOf(HasSubstr("[rank 0] step 12"), HasSubstr(name),
                          HasSubstr("block.w1"), HasSubstr("sharded")));
      }
    }
    EXPECT_THAT(targets.units.handler.take_calls(), IsEmpty());
    // Reading while something else is written is fine.
    auto copy = torch::zeros({4, 3});
    copy.add_(w1.detach());
    expect_same_bits(copy, values_of({4, 3}, 2));
  });
}

TEST(InterceptorMisuseTest, WritingIsAllowedToAUnitThatIsWritable) {
  run_ranks_over_gloo(2, [](World& world) {
    WriteTargets targets(world);
    auto& interceptor = dispatch_interceptor();
    const torch::NoGradGuard no_grad;
    interceptor.set_writable(*targets.first, true);
    {
      const AccessPin pin(targets.units.handler, {targets.first});
      targets.w1.add_(1);
      expect_same_bits(targets.w1.clone(), values_of({4, 3}, 2) + 1);
      EXPECT_EQ(targets.w1._version(), 1);
      EXPECT_THROW(targets.v.add_(1), c10::ValueError);
    }
    interceptor.set_writable(*targets.first, false);
    EXPECT_THROW(targets.w1.add_(1), c10::ValueError);
  });
}

TEST(InterceptorMisuseTest, ReplacingTheMemoryIsAnErrorThatNamesIt) {
  run_ranks(2, [](World& world) {
    WriteTargets targets(world);
    const auto set_data = c10::Dispatcher::singleton()
                              .findSchemaOrThrow("aten::set_data", "")
                              .typed<void(at::Tensor&, const at::Tensor&)>();
    EXPECT_THAT(text_of<c10::ValueError>(
                    [&] { set_data.call(targets.w1, torch::ones({4, 3})); }),
                AllOf(HasSubstr("aten::set_data"), HasSubstr("block.w1")));
    EXPECT_THAT(
        text_of<c10::ValueError>([&] { targets.w1.detach().resize_({2}); }),
        AllOf(HasSubstr("aten::resize_"), HasSubstr("block.w1")));
    EXPECT_NO_THROW(torch::ones({4}).resize_({2}));
    EXPECT_NO_THROW(dispatch_interceptor().verify(*targets.first));
  });
}

TEST(InterceptorMisuseTest, VerifyFindsDataThatWasReplacedUnnoticed) {
  run_ranks(2, [](World& world) {
    WriteTargets targets(world);
    const auto verify = [&] { dispatch_interceptor().verify(*targets.first); };
    verify();
    // A member of the tensor, not an operator.
    targets.w1.set_data(torch::ones({4, 3}));
    EXPECT_THAT(text_of<c10::ValueError>(verify),
                AllOf(HasSubstr("[rank 0] step 12"), HasSubstr("block.w1"),
                      HasSubstr("set_data")));
  });
}

TEST(InterceptorMisuseTest, VerifyFindsAModuleThatWasConverted) {
  run_ranks(2, [](World& world) {
    WatchedUnits units(world);
    torch::nn::Linear linear(3, 2);
    auto& unit = units.add("linear", *linear);
    EXPECT_NO_THROW(dispatch_interceptor().verify(unit));
    linear->to(at::kDouble);
    EXPECT_THAT(
        text_of<c10::ValueError>([&] { dispatch_interceptor().verify(unit); }),
        AllOf(HasSubstr("weight"), HasSubstr("Module::to")));
  });
}

TEST(InterceptorMisuseTest, VerifyFindsChangesOfRequiresGrad) {
  run_ranks(2, [](World& world) {
    WriteTargets targets(world);
    const auto verify = [&] { dispatch_interceptor().verify(*targets.first); };
    targets.w1.set_requires_grad(false);
    EXPECT_THAT(text_of<c10::ValueError>(verify),
                AllOf(HasSubstr("block.w1"), HasSubstr("requires_grad")));
    targets.w1.requires_grad_(true);
    EXPECT_NO_THROW(verify());
    const auto frozen = values_of({3});
    auto& unit = targets.units.add("frozen", frozen);
    EXPECT_NO_THROW(dispatch_interceptor().verify(unit));
    frozen.set_requires_grad(true);
    EXPECT_THAT(
        text_of<c10::ValueError>([&] { dispatch_interceptor().verify(unit); }),
        HasSubstr("frozen was not trainable"));
  });
}

TEST(InterceptorMisuseTest, RawAccessIsAnErrorThatNamesTheParameter) {
  run_ranks(2, [](World& world) {
    WriteTargets targets(world);
    EXPECT_THAT(text_of<c10::Error>([&] { targets.w1.data_ptr<float>(); }),
                AllOf(HasSubstr("block.w0, block.w1"),
                      HasSubstr("GatheredParameters")));
    const auto view = targets.w1.t();
    EXPECT_THROW((view.accessor<float, 2>()), c10::Error);
    const AccessPin pin(targets.units.handler, {targets.first});
    EXPECT_EQ(targets.w1.const_data_ptr<float>()[5],
              values_of({4, 3}, 2).const_data_ptr<float>()[5]);
  });
}

TEST(InterceptorMisuseTest, FindTellsTheUnitOfAParameterAndOfItsViews) {
  run_ranks(2, [](World& world) {
    WriteTargets targets(world);
    auto& interceptor = dispatch_interceptor();
    for (const auto& tensor : {targets.w0, targets.w1, targets.w1.t()[1]}) {
      const auto found = interceptor.find(tensor);
      EXPECT_EQ(found.unit, targets.first);
      EXPECT_EQ(found.handler, &targets.units.handler);
      EXPECT_FALSE(found.is_writable);
    }
    EXPECT_EQ(interceptor.find(torch::ones({3})).unit, nullptr);
    EXPECT_EQ(interceptor.find(targets.w0.clone()).unit, nullptr);
  });
}

TEST(InterceptorMisuseTest, WithoutTheWatchTensorsAreLikeOthers) {
  run_ranks_over_gloo(2, [](World& world) {
    WriteTargets targets(world);
    const auto view = targets.w0.t();
    dispatch_interceptor().unwatch(*targets.first);
    EXPECT_FALSE(carries_key(targets.w0) || carries_key(targets.w1));
    EXPECT_EQ(dispatch_interceptor().find(targets.w0).unit, nullptr);
    ShardedUnit::begin_gather({targets.first});
    targets.first->finish_gather();
    const torch::NoGradGuard no_grad;
    targets.w0.add_(1);
    expect_same_bits(targets.w0 * 2, (values_of({4, 3}, 1) + 1) * 2);
    // Views of before carry the key still, to no effect.
    expect_same_bits(view * 2, (values_of({4, 3}, 1) + 1).t() * 2);
    EXPECT_THAT(targets.units.handler.take_calls(), IsEmpty());
    // The other unit is watched as before.
    targets.v + 1;
    EXPECT_THAT(targets.units.handler.take_calls(), ElementsAre("v"));
  });
}

TEST(InterceptorMisuseTest, ParametersOfTwoHandlersCannotMeet) {
  run_ranks(2, [](World& world) {
    WatchedUnits one(world), two(world);
    const auto a = trained_values({3}, 1), b = trained_values({3}, 2);
    one.add("a", a);
    two.add("b", b);
    EXPECT_THAT(text_of<c10::ValueError>([&] { a + b; }),
                AllOf(HasSubstr("aten::add"), HasSubstr("a of another"),
                      HasSubstr("uses b of one engine")));
    EXPECT_EQ(one.handler.num_pinned() + two.handler.num_pinned(), 0);
    expect_same_bits(a + b.clone(), values_of({3}, 1) + values_of({3}, 2));
  });
}

}  // namespace
}  // namespace nfold
