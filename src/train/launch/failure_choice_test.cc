#include "train/launch/failure_choice.h"

#include <gtest/gtest.h>

#include <csignal>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

// The layout of a wait status: the exit code in the second byte, or the
// signal in the first.
RankEnd exited(int rank, int code) { return {rank, code << 8, std::nullopt}; }
RankEnd killed(int rank, int signal) { return {rank, signal, std::nullopt}; }
RankEnd reported(int rank, bool is_lost_peer) {
  return {rank, 1 << 8, ErrorReport{is_lost_peer, "text"}};
}

int chosen_rank(const std::vector<RankEnd>& ends) {
  return ends[choose_failure(ends)].rank;
}

TEST(FailureChoice, TheFirstOfEqualsIsShown) {
  EXPECT_EQ(chosen_rank({exited(2, 1), exited(0, 1), exited(1, 1)}), 2);
}

TEST(FailureChoice, SuccessIsNoFailure) {
  EXPECT_EQ(chosen_rank({exited(2, 0), exited(0, 3)}), 0);
  EXPECT_THROW(choose_failure({exited(2, 0)}), c10::Error);
}

TEST(FailureChoice, AKilledRankBeatsThoseThatLostIt) {
  EXPECT_EQ(chosen_rank({reported(0, true), killed(1, SIGKILL)}), 1);
  EXPECT_EQ(chosen_rank({exited(0, 1), killed(1, SIGSEGV)}), 1);
}

TEST(FailureChoice, AnErrorOfItsOwnBeatsALostPeer) {
  EXPECT_EQ(chosen_rank({reported(0, true), reported(1, false)}), 1);
  EXPECT_EQ(chosen_rank({reported(0, true), exited(1, 3)}), 1);
}

TEST(FailureChoice, AbortAndTerminationMayBeConsequences) {
  EXPECT_EQ(chosen_rank({exited(1, 3), killed(0, SIGABRT)}), 1);
  EXPECT_EQ(chosen_rank({exited(1, 3), killed(0, SIGTERM)}), 1);
}

TEST(FailureChoice, WaitsLongerTheLessLikelyTheCauseIsKnown) {
  EXPECT_EQ(patience_for(FailureKind::kCrash).count(), 0);
  EXPECT_LT(patience_for(FailureKind::kOwn),
            patience_for(FailureKind::kLostPeer));
  EXPECT_LE(patience_for(FailureKind::kLostPeer), std::chrono::seconds(2));
}

TEST(FailureChoice, ExitCodesAreThoseOfAShell) {
  EXPECT_EQ(exit_code_of(exited(0, 0).wait_status), 0);
  EXPECT_EQ(exit_code_of(exited(0, 3).wait_status), 3);
  EXPECT_EQ(exit_code_of(killed(0, SIGKILL).wait_status), 137);
  EXPECT_EQ(exit_code_of(killed(0, SIGTERM).wait_status), 143);
}

TEST(FailureChoice, DescribesHowARankEnded) {
  EXPECT_EQ(describe_end(exited(0, 3).wait_status), "ended with exit code 3");
  EXPECT_EQ(describe_end(killed(0, SIGSEGV).wait_status),
            "was killed by SIGSEGV (Segmentation fault)");
}

}  // namespace
}  // namespace nfold::train
