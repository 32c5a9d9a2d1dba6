#include "comm/bounded_call.h"

#include <gtest/gtest.h>

#include <memory>
#include <stdexcept>

namespace nfold {
namespace {

using std::chrono::milliseconds;

TEST(BoundedCall, GivesTheAnswer) {
  EXPECT_EQ(answer_within(milliseconds(60000), [] { return "yes"; }), "yes");
}

TEST(BoundedCall, RaisesWhatTheCallRaised) {
  const auto raises = []() -> std::string { throw std::runtime_error("no"); };
  EXPECT_THROW(answer_within(milliseconds(60000), raises), std::runtime_error);
}

TEST(BoundedCall, GivesUpInTimeAndLeavesTheCallWhatItHolds) {
  const auto release = std::make_shared<std::promise<void>>();
  const auto ended = std::make_shared<std::promise<void>>();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(answer_within(milliseconds(20),
                          [release, ended] {
                            release->get_future().wait();
                            ended->set_value();
                            return "late";
                          }),
            std::nullopt);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
  release->set_value();
  ended->get_future().wait();
}

}  // namespace
}  // namespace nfold
