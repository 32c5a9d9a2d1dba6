// Launches real processes: the nfold program, torchrun and mpirun, each with
// launch_probe or a shell script as the program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "nfold/errors.h"
#include "train/launch/command_for_tests.h"
#include "train/launch/port_reservation.h"

namespace nfold::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// What the launcher promises: all ranks gone this soon after a failure.
constexpr std::chrono::seconds kPromise(10);

int count(const std::string& text, const std::string& part) {
  int result = 0;
  for (std::size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + part.size())) {
    ++result;
  }
  return result;
}

std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

Arguments launch(int num_ranks, Arguments program, Arguments options = {}) {
  Arguments all{NFOLD_PROGRAM, "launch", "--nproc", std::to_string(num_ranks)};
  all.insert(all.end(), options.begin(), options.end());
  all.push_back("--");
  all.insert(all.end(), program.begin(), program.end());
  return all;
}

Arguments script(const std::string& text) { return {"sh", "-c", text}; }

// Whether the process is there and not a zombie that nobody collects.
bool is_alive(pid_t pid) {
  const std::string status =
      content_of("/proc/" + std::to_string(pid) + "/stat");
  return !status.empty() && status.find(") Z") == std::string::npos;
}

bool is_gone_in_time(pid_t pid) {
  const auto deadline = Clock::now() + kPromise;
  while (is_alive(pid)) {
    if (Clock::now() > deadline) return false;
    ::usleep(1000);
  }
  return true;
}

TEST(Launchers, AloneTheWorldHasOneRank) {
  const Outcome outcome = run({NFOLD_PROBE, "sum"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(outcome.output, "sum 1 of 1 ranks, launcher none\n");
}

TEST(Launchers, NfoldLaunchStartsRanks) {
  const Outcome outcome = run(launch(3, {NFOLD_PROBE, "sum"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(outcome.output, "sum 6 of 3 ranks, launcher torchrun\n");
}

TEST(Launchers, TorchrunServesTheStoreItself) {
  const Outcome outcome = run(
      {NFOLD_TORCHRUN, "--no-python", "--nproc-per-node", "2", "--rdzv-backend",
       "c10d", "--rdzv-endpoint", "localhost:0", NFOLD_PROBE, "sum"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(count(outcome.output, "sum 3 of 2 ranks, launcher torchrun"), 1)
      << outcome.output;
}

TEST(Launchers, TorchrunStandaloneWorks) {
  const Outcome outcome = run({NFOLD_TORCHRUN, "--standalone", "--no-python",
                               "--nproc-per-node", "2", NFOLD_PROBE, "sum"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(count(outcome.output, "sum 3 of 2 ranks, launcher torchrun"), 1)
      << outcome.output;
}

TEST(Launchers, MpirunNeedsNoAddress) {
  const Outcome outcome =
      run({NFOLD_MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "2",
           NFOLD_PROBE, "sum"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(count(outcome.output, "sum 3 of 2 ranks, launcher Open MPI"), 1)
      << outcome.output << outcome.errors;
}

TEST(Launchers, SrunVariablesMakeAJob) {
  // What srun sets, without Slurm: two processes of one step.
  const PortReservation port = PortReservation::any();
  const std::string common =
      "export SLURM_NTASKS=2 SLURM_JOB_ID=7 SLURM_STEP_ID=0 "
      "SLURM_NODELIST=localhost MASTER_PORT=" +
      std::to_string(port.number()) + "; ";
  const Outcome outcome = run(script(
      common + "SLURM_PROCID=1 SLURM_LOCALID=1 " + NFOLD_PROBE +
      " sum & SLURM_PROCID=0 SLURM_LOCALID=0 " + NFOLD_PROBE + " sum; wait"));
  EXPECT_EQ(outcome.output, "sum 3 of 2 ranks, launcher Slurm\n")
      << outcome.errors;
}

TEST(Launchers, HostsMayBeMadeUp) {
  LaunchFolder folder;
  const Outcome outcome =
      run(launch(4,
                 script("NFOLD_HOST=node$((RANK / 2)) exec " +
                        std::string(NFOLD_PROBE) + " place"),
                 {"--log-dir", folder.path().string()}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output,
              HasSubstr("rank 0 of 4, local 0 of 2, host node0"));
  EXPECT_THAT(content_of(folder.path() / "rank_3.log"),
              HasSubstr("rank 3 of 4, local 1 of 2, host node1"));
}

TEST(Launch, RanksGetWhatTorchrunWouldSet) {
  LaunchFolder folder;
  const Outcome outcome =
      run(launch(2,
                 script("echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE "
                        "$MASTER_ADDR ${MASTER_PORT:+port} "
                        "${OMP_NUM_THREADS:+threads}"),
                 {"--log-dir", folder.path().string()}));
  EXPECT_EQ(outcome.output, "0 0 2 2 127.0.0.1 port threads\n");
  EXPECT_EQ(content_of(folder.path() / "rank_1.log"),
            "1 1 2 2 127.0.0.1 port threads\n");
}

// Two launchers of one job, as on two hosts; the second ends first or after
// the first, and what both print arrives together.
Outcome launch_on_two_hosts(const std::string& first, const std::string& second,
                            const std::string& options = "") {
  int number = 0;
  {
    const PortReservation port = PortReservation::any();
    number = port.number();
  }
  const std::string launch = std::string(NFOLD_PROGRAM) +
                             " launch --nnodes 2 --nproc 2 --master-addr "
                             "127.0.0.1 --master-port " +
                             std::to_string(number) + " " + options;
  return run(script("NFOLD_HOST=beta " + launch + " --node-rank 1 -- " +
                    second + " & NFOLD_HOST=alpha " + launch +
                    " --node-rank 0 -- " + first + "; code=$?; wait $!; " +
                    "echo $? >&2; exit $code"));
}

TEST(LaunchOnHosts, OneLauncherOnEachMakesOneJob) {
  const std::string sum = std::string(NFOLD_PROBE) + " sum";
  const Outcome outcome = launch_on_two_hosts(sum, sum);
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(outcome.output, "sum 10 of 4 ranks, launcher torchrun\n");
}

TEST(LaunchOnHosts, RanksKnowTheirHosts) {
  LaunchFolder folder;
  const std::string place = std::string(NFOLD_PROBE) + " place";
  const Outcome outcome =
      launch_on_two_hosts(place, place, "--log-dir " + folder.path().string());
  EXPECT_EQ(outcome.output, "rank 0 of 4, local 0 of 2, host alpha\n")
      << outcome.errors;
  EXPECT_THAT(content_of(folder.path() / "rank_1.log"),
              HasSubstr("rank 1 of 4, local 1 of 2, host alpha"));
  EXPECT_THAT(content_of(folder.path() / "rank_2.log"),
              HasSubstr("rank 2 of 4, local 0 of 2, host beta"));
  EXPECT_THAT(content_of(folder.path() / "rank_3.log"),
              HasSubstr("rank 3 of 4, local 1 of 2, host beta"));
}

TEST(LaunchOnHosts, RanksGetWhatTorchrunWouldSet) {
  LaunchFolder folder;
  const Outcome outcome =
      run(launch(2,
                 script("echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE "
                        "$GROUP_RANK $GROUP_WORLD_SIZE $MASTER_ADDR "
                        "$MASTER_PORT"),
                 {"--nnodes", "3", "--node-rank", "2", "--master-addr", "node0",
                  "--log-dir", folder.path().string()}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  // Rank 0, which keeps the terminal, is elsewhere.
  EXPECT_EQ(outcome.output, "");
  EXPECT_EQ(content_of(folder.path() / "rank_4.log"),
            "4 0 6 2 2 3 node0 29500\n");
  EXPECT_EQ(content_of(folder.path() / "rank_5.log"),
            "5 1 6 2 2 3 node0 29500\n");
}

TEST(LaunchOnHosts, AFailureOnOneEndsTheOther) {
  const std::string fail = std::string(NFOLD_PROBE) + " fail 3 exit";
  const Outcome outcome = launch_on_two_hosts(fail, fail);
  EXPECT_LT(outcome.time, kPromise);
  // Of the first host's launcher, whose ranks lost their peer.
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("rank 3 (host beta)"));
  // Of the second's, which knows the cause.
  EXPECT_THAT(outcome.errors,
              AllOf(HasSubstr("nfold: error: [rank 3] ended with exit code 3"),
                    HasSubstr("\n3\n")));
}

TEST(LaunchOnHosts, ContradictionsAreNamedBeforeAnythingStarts) {
  const auto errors_of = [](Arguments options) {
    const Outcome outcome = run(launch(2, script("echo started"), options));
    EXPECT_EQ(outcome.exit_code, 1);
    EXPECT_EQ(outcome.output, "");
    return outcome.errors;
  };
  EXPECT_THAT(errors_of({"--nnodes", "2", "--node-rank", "2", "--master-addr",
                         "node0"}),
              HasSubstr("--node-rank 2 with --nnodes 2; expected 0 to 1"));
  EXPECT_THAT(errors_of({"--nnodes", "2", "--node-rank", "0"}),
              HasSubstr("without --master-addr"));
  EXPECT_THAT(errors_of({"--nnodes", "2", "--master-addr", "node0"}),
              HasSubstr("without --node-rank"));
  EXPECT_THAT(errors_of({"--node-rank", "1"}), HasSubstr("--nnodes N"));
}

TEST(Launch, AGivenPortIsUsed) {
  int number = 0;
  {
    const PortReservation port = PortReservation::any();
    number = port.number();
  }
  const Outcome outcome = run(launch(1, script("echo $MASTER_PORT"),
                                     {"--port", std::to_string(number)}));
  EXPECT_EQ(outcome.output, std::to_string(number) + "\n");
}

TEST(Launch, APortInUseIsAnError) {
  // A program that listens where the launcher is told to meet.
  const int server = ::socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  socklen_t address_bytes = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(server, generic, sizeof(address)), 0);
  ASSERT_EQ(::listen(server, 1), 0);
  ASSERT_EQ(::getsockname(server, generic, &address_bytes), 0);
  const std::string port = std::to_string(ntohs(address.sin6_port));
  const Outcome outcome =
      run(launch(2, script("echo started"), {"--port", port}));
  ::close(server);
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.output, "");
  EXPECT_THAT(outcome.errors,
              AllOf(HasSubstr("nfold: error: port " + port), HasSubstr("use")));
}

TEST(Launch, ALaunchInsideOfALaunchIsAnError) {
  const Outcome outcome = run(launch(1, launch(2, script("echo started"))));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.output, "");
  EXPECT_EQ(count(outcome.errors, "nfold: error:"), 1) << outcome.errors;
  EXPECT_THAT(outcome.errors, HasSubstr("RANK=0 is set"));
}

TEST(Launch, AProgramThatIsNotThereIsNamed) {
  const Outcome outcome = run(launch(2, {"/no/such/program"}));
  EXPECT_EQ(outcome.exit_code, 127);
  EXPECT_EQ(count(outcome.errors, "nfold: error:"), 1) << outcome.errors;
  EXPECT_THAT(outcome.errors,
              HasSubstr("cannot run /no/such/program: No such file"));
}

TEST(Launch, OnlyTheFailingRanksOutputIsShown) {
  const Outcome outcome = run(launch(
      3, script("echo hello from $RANK >&2; if [ $RANK = 2 ]; then exit 3; fi; "
                "sleep 60")));
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_LT(outcome.time, kPromise);
  EXPECT_THAT(outcome.errors,
              AllOf(HasSubstr("hello from 0\n"),
                    HasSubstr("[rank 2] ended with exit code 3"),
                    HasSubstr("[rank 2] hello from 2\n"),
                    Not(HasSubstr("hello from 1"))));
  EXPECT_EQ(count(outcome.errors, "nfold: error:"), 1) << outcome.errors;
}

TEST(Launch, MuchOutputNeitherStallsNorFloods) {
  const Outcome outcome = run(launch(
      2, script("if [ $RANK = 1 ]; then seq 200000; exit 4; fi; sleep 60")));
  EXPECT_EQ(outcome.exit_code, 4);
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("[rank 1] 200000\n"),
                                    Not(HasSubstr("[rank 1] 100000\n"))));
  EXPECT_LT(outcome.errors.size(), 64u * 1024);
}

TEST(Launch, ARankThatIgnoresSigtermIsKilled) {
  const Outcome outcome =
      run(launch(2, script("if [ $RANK = 1 ]; then exit 5; fi; trap '' TERM; "
                           "while :; do sleep 1; done")));
  EXPECT_EQ(outcome.exit_code, 5);
  EXPECT_LT(outcome.time, kPromise);
}

TEST(Launch, AStoppedRankIsEndedToo) {
  const Outcome outcome = run(launch(
      2, script("if [ $RANK = 1 ]; then sleep 0.2; exit 5; fi; kill -STOP $$; "
                "sleep 60")));
  EXPECT_EQ(outcome.exit_code, 5);
  EXPECT_LT(outcome.time, kPromise);
}

TEST(Launch, WhatAScriptStartedEndsWithIt) {
  LaunchFolder folder;
  const std::string file = (folder.path() / "pid").string();
  const Outcome outcome =
      run(launch(2, script("if [ $RANK = 0 ]; then sleep 600 & echo $! > " +
                           file + ".part; mv " + file + ".part " + file +
                           "; wait; fi; while [ "
                           "! -e " +
                           file + " ]; do sleep 0.01; done; exit 6")));
  EXPECT_EQ(outcome.exit_code, 6);
  EXPECT_TRUE(is_gone_in_time(std::stoi(content_of(file))));
}

// A rank of a running job fails; the others sit in a collective.
struct Failure {
  const char* how;
  int exit_code;
  const char* text;
};

class ARankThat : public ::testing::TestWithParam<Failure> {};

TEST_P(ARankThat, FailsEndsTheJobWithOneMessage) {
  const Failure& failure = GetParam();
  for (const char* rank : {"1", "0"}) {
    const Outcome outcome =
        run(launch(3, {NFOLD_PROBE, "fail", rank, failure.how}));
    EXPECT_EQ(outcome.exit_code, failure.exit_code) << outcome.errors;
    EXPECT_LT(outcome.time, kPromise);
    EXPECT_EQ(count(outcome.errors, "nfold: error:"), 1) << outcome.errors;
    EXPECT_THAT(outcome.errors, HasSubstr(std::string("nfold: error: [rank ") +
                                          rank + "] " + failure.text));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Launch, ARankThat,
    ::testing::Values(Failure{"exit", 3, "ended with exit code 3"},
                      Failure{"throw", 1, "the probe was told to fail"},
                      Failure{"kill", 137, "was killed by SIGKILL"},
                      Failure{"segfault", 139, "was killed by SIGSEGV"},
                      Failure{"abort", 134, "was killed by SIGABRT"}),
    [](const auto& info) { return std::string(info.param.how); });

// Ranks that say when they are ready and which signal they got.
std::string signal_script(const std::filesystem::path& folder) {
  const std::string name = folder.string() + "/$RANK";
  return "trap 'echo TERM >> " + name + ".got; exit 0' TERM; " +
         "trap 'echo INT >> " + name + ".got; exit 9' INT; " +
         "trap 'echo HUP >> " + name + ".got; exit 0' HUP; " + "touch " + name +
         ".ready; if [ $RANK = 0 ]; then while [ ! -e " + folder.string() +
         "/1.ready ]; do sleep 0.01; done; echo ready; fi; "
         "while :; do sleep 0.05; done";
}

TEST(LaunchSignals, TerminationReachesEveryRank) {
  LaunchFolder folder;
  Command command(launch(2, script(signal_script(folder.path()))));
  command.wait_for_output("ready");
  ::kill(command.pid(), SIGTERM);
  const Outcome outcome = command.finish();
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(content_of(folder.path() / "0.got"), "TERM\n");
  EXPECT_EQ(content_of(folder.path() / "1.got"), "TERM\n");
}

TEST(LaunchSignals, HangUpReachesEveryRank) {
  LaunchFolder folder;
  Command command(launch(2, script(signal_script(folder.path()))));
  command.wait_for_output("ready");
  ::kill(command.pid(), SIGHUP);
  EXPECT_EQ(command.finish().exit_code, 0);
  EXPECT_EQ(content_of(folder.path() / "1.got"), "HUP\n");
}

TEST(LaunchSignals, AnInterruptedJobIsNoError) {
  LaunchFolder folder;
  Command command(launch(2, script(signal_script(folder.path()))));
  command.wait_for_output("ready");
  ::kill(command.pid(), SIGINT);
  const Outcome outcome = command.finish();
  EXPECT_EQ(outcome.exit_code, 9);
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("ended by SIGINT"),
                                    Not(HasSubstr("nfold: error"))));
}

TEST(LaunchSignals, AKilledLauncherLeavesNoOrphans) {
  LaunchFolder folder;
  const std::string name = folder.path().string() + "/$RANK";
  Command command(
      launch(2, script("echo $$ > " + name +
                       ".pid; if [ $RANK = 0 ]; then while [ ! "
                       "-s " +
                       folder.path().string() +
                       "/1.pid ]; do sleep 0.01; "
                       "done; echo ready; fi; while :; do sleep 0.05; done")));
  command.wait_for_output("ready");
  const pid_t ranks[2] = {std::stoi(content_of(folder.path() / "0.pid")),
                          std::stoi(content_of(folder.path() / "1.pid"))};
  ::kill(command.pid(), SIGKILL);
  EXPECT_EQ(command.finish().exit_code, 137);
  for (pid_t rank : ranks) EXPECT_TRUE(is_gone_in_time(rank));
}

TEST(Program, WrongUseEndsWithTwo) {
  EXPECT_EQ(run({NFOLD_PROGRAM}).exit_code, 2);
  EXPECT_EQ(run({NFOLD_PROGRAM, "lunch"}).exit_code, 2);
  EXPECT_EQ(
      run({NFOLD_PROGRAM, "launch", "--nproc", "0", "--", "sh"}).exit_code, 2);
  EXPECT_EQ(run({NFOLD_PROGRAM, "launch", "--", "sh"}).exit_code, 2);
}

TEST(Program, HelpAndVersionEndWithZero) {
  const Outcome help = run({NFOLD_PROGRAM, "--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.output, AllOf(HasSubstr("Examples"), HasSubstr("doctor")));
  const Outcome version = run({NFOLD_PROGRAM, "--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.output, HasSubstr("nfold 0."));
}

TEST(Program, LaunchPassesEveryArgumentOn) {
  const Outcome outcome = run(launch(
      1, {"echo", "--nproc", "7", "-n", "--", "--port=1", "a b", "--help"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(outcome.output, "--nproc 7 -n -- --port=1 a b --help\n");
}

}  // namespace
}  // namespace nfold::train
