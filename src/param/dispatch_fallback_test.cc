#include "param/dispatch_fallback.h"

#include <ATen/ops/add.h>
#include <ATen/ops/ones.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace nfold {
namespace {

using testing::ElementsAre;

// What the handlers were offered, and what they answer.
struct Offers {
  std::vector<std::string> log;
  bool recording_takes = false;
  bool access_takes = false;
};

Offers& offers() {
  static Offers instance;
  return instance;
}

bool answer(const char* handler, bool takes, const c10::OperatorHandle& op,
            torch::jit::Stack* stack) {
  offers().log.push_back(handler + op.schema().name());
  if (!takes) return false;
  torch::jit::drop(*stack, op.schema().arguments().size());
  stack->push_back(at::Tensor());
  return true;
}

bool on_recording(const c10::OperatorHandle& op, c10::DispatchKeySet,
                  torch::jit::Stack* stack) {
  return answer("recording ", offers().recording_takes, op, stack);
}

bool on_access(const c10::OperatorHandle& op, c10::DispatchKeySet,
               torch::jit::Stack* stack) {
  return answer("access ", offers().access_takes, op, stack);
}

class DispatchFallbackTest : public testing::Test {
 protected:
  DispatchFallbackTest() {
    offers() = {};
    set_recording_handler(&on_recording);
    set_access_handler(&on_access);
  }
  ~DispatchFallbackTest() override {
    set_recording_handler(nullptr);
    set_access_handler(nullptr);
  }

  at::Tensor tensor_ = at::ones({3});
};

TEST_F(DispatchFallbackTest, WithoutTheKeyNothingIsOffered) {
  at::add(tensor_, tensor_);
  EXPECT_THAT(offers().log, ElementsAre());
}

TEST_F(DispatchFallbackTest, ACallIsOfferedToRecordingThenToAccessThenRuns) {
  c10::impl::IncludeDispatchKeyGuard guard(kInterceptionKey);
  const auto sum = at::add(tensor_, tensor_);
  EXPECT_THAT(offers().log,
              ElementsAre("recording aten::add", "access aten::add"));
  EXPECT_EQ(sum.const_data_ptr<float>()[0], 2);
}

TEST_F(DispatchFallbackTest, WhoTakesACallEndsIt) {
  c10::impl::IncludeDispatchKeyGuard guard(kInterceptionKey);
  offers().access_takes = true;
  EXPECT_FALSE(at::add(tensor_, tensor_).defined());
  offers().recording_takes = true;
  EXPECT_FALSE(at::add(tensor_, tensor_).defined());
  EXPECT_THAT(offers().log,
              ElementsAre("recording aten::add", "access aten::add",
                          "recording aten::add"));
}

TEST_F(DispatchFallbackTest, InAnUnrecordedScopeOnlyAccessIsOffered) {
  c10::impl::IncludeDispatchKeyGuard guard(kInterceptionKey);
  {
    UnrecordedScope unrecorded;
    at::add(tensor_, tensor_);
  }
  EXPECT_THAT(offers().log, ElementsAre("access aten::add"));
  at::add(tensor_, tensor_);
  EXPECT_THAT(offers().log,
              ElementsAre("access aten::add", "recording aten::add",
                          "access aten::add"));
}

TEST_F(DispatchFallbackTest, WithoutHandlersCallsRun) {
  set_recording_handler(nullptr);
  set_access_handler(nullptr);
  c10::impl::IncludeDispatchKeyGuard guard(kInterceptionKey);
  EXPECT_EQ(at::add(tensor_, tensor_).const_data_ptr<float>()[2], 2);
}

}  // namespace
}  // namespace nfold
