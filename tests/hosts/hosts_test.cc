// Jobs over several hosts: network namespaces (scripts/hosts.py), in each of
// which the project's own launcher starts ranks of hosts_probe.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "testing/skip.h"
#include "train/launch/command_for_tests.h"

namespace nfold::train {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Arguments hosts_script(Arguments arguments) {
  arguments.insert(arguments.begin(), {"python3", NFOLD_HOSTS_SCRIPT});
  return arguments;
}

// What every test begins with; see NFOLD_SKIP.
#define SKIP_WITHOUT_HOSTS()                            \
  do {                                                  \
    const Outcome check = run(hosts_script({"check"})); \
    if (check.exit_code != 0) NFOLD_SKIP(check.errors); \
  } while (false)

class TestHosts {
 public:
  explicit TestHosts(int num_hosts) : num_hosts_(num_hosts) {
    const Outcome outcome =
        run(hosts_script({"up", std::to_string(num_hosts), "--rate", "1gbit"}));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
    name_ = outcome.output.substr(0, outcome.output.find('\n'));
  }
  ~TestHosts() { run(hosts_script({"down", name_})); }
  TestHosts(const TestHosts&) = delete;
  TestHosts& operator=(const TestHosts&) = delete;

  const std::string& name() const { return name_; }
  std::string host(int number) const {
    return name_ + "-" + std::to_string(number);
  }

  Arguments on(int number, Arguments command) const {
    command.insert(command.begin(), {"run", host(number), "--"});
    return hosts_script(std::move(command));
  }

  // A job of the probe: its launcher on each host, all under way.
  std::vector<std::unique_ptr<Command>> launch(int ranks_per_host,
                                               const std::string& timeout,
                                               const Arguments& probe) const {
    std::vector<std::unique_ptr<Command>> launchers;
    for (int number = 0; number < num_hosts_; ++number) {
      Arguments command{"env",
                        "OMP_NUM_THREADS=1",
                        "NFOLD_TIMEOUT=" + timeout,
                        NFOLD_PROGRAM,
                        "launch",
                        "--nnodes",
                        std::to_string(num_hosts_),
                        "--node-rank",
                        std::to_string(number),
                        "--master-addr",
                        host(0),
                        "--nproc",
                        std::to_string(ranks_per_host),
                        "--",
                        NFOLD_HOSTS_PROBE};
      command.insert(command.end(), probe.begin(), probe.end());
      launchers.push_back(std::make_unique<Command>(on(number, command)));
    }
    return launchers;
  }

 private:
  int num_hosts_;
  std::string name_;
};

// What a rank of the probe has left: where it is, and what the training that
// `name` stands for came to.
struct Left {
  std::string place;
  std::string result;
};

Left left_by(const LaunchFolder& folder, int rank, const std::string& name) {
  std::ifstream file(folder.path() / ("rank_" + std::to_string(rank)));
  Left left;
  std::getline(file, left.place);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + " ", 0) == 0) left.result = line;
  }
  return left;
}

// As many ranks on one host: at stage 3 and as MiCS with 1 and 2 per group.
const LaunchFolder& trained_on_one_host(int num_ranks) {
  static std::map<int, LaunchFolder> folders;
  const bool is_new = folders.find(num_ranks) == folders.end();
  const LaunchFolder& folder = folders[num_ranks];
  if (!is_new) return folder;
  const Outcome outcome =
      run({"env", "OMP_NUM_THREADS=1", NFOLD_PROGRAM, "launch", "--nproc",
           std::to_string(num_ranks), "--", NFOLD_HOSTS_PROBE, "train",
           folder.path(), "1", "2"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output << outcome.errors;
  return folder;
}

// Trains on hosts, and with as many ranks on one host; every rank must get the
// same bits.
void expect_hosts_to_change_nothing(int num_hosts, int ranks_per_host) {
  const TestHosts hosts(num_hosts);
  const LaunchFolder folder;
  const std::string shard_size = std::to_string(ranks_per_host);
  for (auto& launcher : hosts.launch(ranks_per_host, "60",
                                     {"train", folder.path(), shard_size})) {
    const Outcome outcome = launcher->finish();
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output << outcome.errors;
  }
  const int num_ranks = num_hosts * ranks_per_host;
  const LaunchFolder& alone = trained_on_one_host(num_ranks);
  for (int rank = 0; rank < num_ranks; ++rank) {
    std::ostringstream place;
    place << "rank " << rank << " of " << num_ranks << ", local "
          << rank % ranks_per_host << " of " << ranks_per_host << ", host "
          << hosts.host(rank / ranks_per_host);
    for (const std::string& name :
         {std::string("stage3"), "mics" + shard_size}) {
      const Left actual = left_by(folder, rank, name);
      EXPECT_EQ(actual.place, place.str());
      EXPECT_NE(actual.result, "");
      EXPECT_EQ(actual.result, left_by(alone, rank, name).result);
    }
  }
}

TEST(Hosts, TwoOfOneRankTrainAsOneHostDoes) {
  SKIP_WITHOUT_HOSTS();
  expect_hosts_to_change_nothing(2, 1);
}

TEST(Hosts, TwoOfTwoRanksTrainAsOneHostDoes) {
  SKIP_WITHOUT_HOSTS();
  expect_hosts_to_change_nothing(2, 2);
}

TEST(Hosts, FourOfOneRankTrainAsOneHostDoes) {
  SKIP_WITHOUT_HOSTS();
  expect_hosts_to_change_nothing(4, 1);
}

TEST(Hosts, FourOfTwoRanksTrainAsOneHostDoes) {
  SKIP_WITHOUT_HOSTS();
  expect_hosts_to_change_nothing(4, 2);
}

// After the time-out: for the texts to be exchanged, the ranks to end, and a
// busy machine.
constexpr std::chrono::seconds kMargin(15);

// Waits for the launchers of all hosts but one, which must blame that one.
void expect_others_to_blame(const TestHosts& hosts, int lost,
                            std::vector<std::unique_ptr<Command>>& launchers,
                            std::chrono::seconds time_out) {
  const auto start = Clock::now();
  for (std::size_t i = 0; i < launchers.size(); ++i) {
    if (static_cast<int>(i) == lost) continue;
    const Outcome outcome = launchers[i]->finish();
    EXPECT_EQ(outcome.exit_code, 1) << outcome.errors;
    EXPECT_THAT(outcome.errors,
                AllOf(HasSubstr("nfold: error: [rank "),
                      HasSubstr("(host " + hosts.host(lost) + ")")));
  }
  EXPECT_LT(Clock::now() - start, time_out + kMargin);
}

// The host is silent from one moment to the next: nothing is reset.
void expect_a_silent_host_to_be_named(int num_hosts, int ranks_per_host,
                                      int lost, const std::string& shard_size) {
  const TestHosts hosts(num_hosts);
  auto launchers = hosts.launch(ranks_per_host, "6", {"forever", shard_size});
  launchers[0]->wait_for_output("under way");
  EXPECT_EQ(
      run(hosts.on(lost, {"ip", "link", "set", "eth0", "down"})).exit_code, 0);
  expect_others_to_blame(hosts, lost, launchers, std::chrono::seconds(6));
  // The one that is cut off has lost all others.
  const Outcome outcome = launchers[static_cast<std::size_t>(lost)]->finish();
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("(host " + hosts.name() + "-"));
}

TEST(Hosts, ASilentHostIsNamedWithinTheTimeOut) {
  SKIP_WITHOUT_HOSTS();
  expect_a_silent_host_to_be_named(2, 2, /*lost=*/1, "0");
}

// The store is there, too: nobody can tell others what was first.
TEST(Hosts, ASilentHostOfTheStoreIsNamedWithinTheTimeOut) {
  SKIP_WITHOUT_HOSTS();
  expect_a_silent_host_to_be_named(4, 1, /*lost=*/0, "1");
}

TEST(Hosts, AHostWhoseProcessesDieIsNamedAtOnce) {
  SKIP_WITHOUT_HOSTS();
  for (const char* shard_size : {"0", "2"}) {
    const TestHosts hosts(2);
    auto launchers = hosts.launch(2, "300", {"forever", shard_size});
    launchers[0]->wait_for_output("under way");
    run(hosts.on(1, {"sh", "-c", "kill -9 -1"}));
    expect_others_to_blame(hosts, 1, launchers, std::chrono::seconds(0));
    EXPECT_NE(launchers[1]->finish().exit_code, 0);
  }
}

}  // namespace
}  // namespace nfold::train
