#include "comm/launcher_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "nfold/errors.h"

namespace nfold {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string error_of(const EnvironmentMap& variables) {
  try {
    read_launcher_environment(variables);
  } catch (const c10::ValueError& error) {
    return message_of(error);
  }
  return "no error";
}

EnvironmentMap with(EnvironmentMap base, const EnvironmentMap& more) {
  for (const auto& [name, value] : more) base[name] = value;
  return base;
}

const EnvironmentMap kTorchrunVariables{
    {"RANK", "3"},
    {"WORLD_SIZE", "8"},
    {"LOCAL_RANK", "1"},
    {"LOCAL_WORLD_SIZE", "2"},
    {"MASTER_ADDR", "node7"},
    {"MASTER_PORT", "29511"},
    {"TORCHELASTIC_RUN_ID", "run"},
    {"TORCHELASTIC_RESTART_COUNT", "2"},
    {"TORCHELASTIC_USE_AGENT_STORE", "True"}};

const EnvironmentMap kOpenMpiVariables{
    {"OMPI_COMM_WORLD_RANK", "1"},
    {"OMPI_COMM_WORLD_SIZE", "2"},
    {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
    {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
    {"OMPI_MCA_ess_base_jobid", "1992884225"},
    {"OMPI_MCA_orte_precondition_transports", "8384d15b-796f3488"},
    {"PMIX_RANK", "1"},
    {"PMIX_NAMESPACE", "1992884225"}};

const EnvironmentMap kMpichVariables{{"PMI_RANK", "2"},
                                     {"PMI_SIZE", "4"},
                                     {"MPI_LOCALRANKID", "2"},
                                     {"MPI_LOCALNRANKS", "4"}};

const EnvironmentMap kSlurmVariables{
    {"SLURM_PROCID", "5"},    {"SLURM_NTASKS", "8"},
    {"SLURM_LOCALID", "1"},   {"SLURM_NTASKS_PER_NODE", "4"},
    {"SLURM_NNODES", "2"},    {"SLURM_NODELIST", "node[03-04]"},
    {"SLURM_JOB_ID", "4711"}, {"SLURM_STEP_ID", "0"}};

TEST(LauncherEnvironment, NoVariablesMeanOneProcess) {
  const auto job = read_launcher_environment({{"PATH", "/bin"}});
  EXPECT_EQ(job.launcher, Launcher::kNone);
  EXPECT_EQ(job.rank, 0);
  EXPECT_EQ(job.size, 1);
  EXPECT_EQ(job.master_addr, "");
  EXPECT_EQ(job.master_port, 0);
}

TEST(LauncherEnvironment, AnAddressAloneDoesNotMakeAJob) {
  const auto job = read_launcher_environment(
      {{"MASTER_ADDR", "node7"}, {"MASTER_PORT", "29500"}});
  EXPECT_EQ(job.launcher, Launcher::kNone);
  EXPECT_EQ(job.size, 1);
}

TEST(LauncherEnvironment, EmptyVariablesCountAsUnset) {
  const auto job = read_launcher_environment({{"RANK", ""}, {"PMI_SIZE", ""}});
  EXPECT_EQ(job.launcher, Launcher::kNone);
}

TEST(LauncherEnvironment, ReadsTorchrunWithItsAgentStore) {
  const auto job = read_launcher_environment(kTorchrunVariables);
  EXPECT_EQ(job.launcher, Launcher::kTorchrun);
  EXPECT_EQ(job.rank, 3);
  EXPECT_EQ(job.size, 8);
  EXPECT_EQ(job.local_rank, 1);
  EXPECT_EQ(job.local_size, 2);
  EXPECT_EQ(job.master_addr, "node7");
  EXPECT_EQ(job.master_port, 29511);
  EXPECT_TRUE(job.uses_agent_store);
  EXPECT_FALSE(job.is_port_derived);
}

TEST(LauncherEnvironment, ARestartHasItsOwnKeys) {
  const auto first = read_launcher_environment(kTorchrunVariables);
  const auto second = read_launcher_environment(
      with(kTorchrunVariables, {{"TORCHELASTIC_RESTART_COUNT", "3"}}));
  const auto other_run = read_launcher_environment(
      with(kTorchrunVariables, {{"TORCHELASTIC_RUN_ID", "other"}}));
  EXPECT_NE(first.attempt, second.attempt);
  EXPECT_NE(first.attempt, other_run.attempt);
}

TEST(LauncherEnvironment, OnlyTheWordTrueMeansAnAgentStore) {
  EXPECT_FALSE(
      read_launcher_environment(
          with(kTorchrunVariables, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}}))
          .uses_agent_store);
}

TEST(LauncherEnvironment, OneRankOfTorchrunNeedsNoAddress) {
  const auto job =
      read_launcher_environment({{"RANK", "0"}, {"WORLD_SIZE", "1"}});
  EXPECT_EQ(job.launcher, Launcher::kTorchrun);
  EXPECT_EQ(job.size, 1);
}

TEST(LauncherEnvironment, ReadsOpenMpiOnOneHostWithADerivedPort) {
  const auto job = read_launcher_environment(kOpenMpiVariables);
  EXPECT_EQ(job.launcher, Launcher::kOpenMpi);
  EXPECT_EQ(job.rank, 1);
  EXPECT_EQ(job.size, 2);
  EXPECT_EQ(job.local_rank, 1);
  EXPECT_EQ(job.local_size, 2);
  EXPECT_EQ(job.master_addr, "127.0.0.1");
  EXPECT_TRUE(job.is_port_derived);
  EXPECT_EQ(job.master_port, port_of_job("8384d15b-796f3488"));
}

TEST(LauncherEnvironment, OpenMpiWithAnAddressUsesIt) {
  const auto job = read_launcher_environment(with(
      kOpenMpiVariables, {{"MASTER_ADDR", "head"}, {"MASTER_PORT", "4000"}}));
  EXPECT_EQ(job.master_addr, "head");
  EXPECT_EQ(job.master_port, 4000);
  EXPECT_FALSE(job.is_port_derived);
}

TEST(LauncherEnvironment, OpenMpiOnManyHostsNeedsAnAddress) {
  const EnvironmentMap two_hosts =
      with(kOpenMpiVariables, {{"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                               {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"}});
  EXPECT_THAT(error_of(two_hosts), HasSubstr("MASTER_ADDR is not set"));
  EXPECT_EQ(read_launcher_environment(
                with(two_hosts, {{"SLURM_JOB_NODELIST", "gpu[08-09]"}}))
                .master_addr,
            "gpu08");
}

TEST(LauncherEnvironment, ReadsMpichAndIntelMpi) {
  const auto job = read_launcher_environment(kMpichVariables);
  EXPECT_EQ(job.launcher, Launcher::kMpich);
  EXPECT_EQ(job.rank, 2);
  EXPECT_EQ(job.size, 4);
  EXPECT_EQ(job.local_rank, 2);
  EXPECT_EQ(job.local_size, 4);
  EXPECT_EQ(job.master_addr, "127.0.0.1");
  EXPECT_EQ(job.master_port, 29500);
}

TEST(LauncherEnvironment, ReadsPals) {
  const auto job = read_launcher_environment({{"PMIX_RANK", "1"},
                                              {"PMI_SIZE", "2"},
                                              {"PALS_LOCAL_RANKID", "0"},
                                              {"PALS_APID", "b7"},
                                              {"MASTER_ADDR", "x1000"}});
  EXPECT_EQ(job.launcher, Launcher::kMpich);
  EXPECT_EQ(job.rank, 1);
  EXPECT_EQ(job.local_rank, 0);
  EXPECT_EQ(job.master_addr, "x1000");
  EXPECT_EQ(job.master_port, port_of_job("b7"));
}

TEST(LauncherEnvironment, ReadsSlurm) {
  const auto job = read_launcher_environment(kSlurmVariables);
  EXPECT_EQ(job.launcher, Launcher::kSlurm);
  EXPECT_EQ(job.rank, 5);
  EXPECT_EQ(job.size, 8);
  EXPECT_EQ(job.local_rank, 1);
  EXPECT_EQ(job.local_size, 4);
  EXPECT_EQ(job.master_addr, "node03");
  EXPECT_EQ(job.master_port, port_of_job("4711.0"));
}

TEST(LauncherEnvironment, TwoStepsOfOneSlurmJobMeetAtDifferentPorts) {
  const auto first = read_launcher_environment(kSlurmVariables);
  const auto second = read_launcher_environment(
      with(kSlurmVariables, {{"SLURM_STEP_ID", "1"}}));
  EXPECT_NE(first.master_port, second.master_port);
  EXPECT_NE(first.attempt, second.attempt);
}

TEST(LauncherEnvironment, AStepWithFewerTasksThanTheJobCountsTheStep) {
  const auto job = read_launcher_environment(
      with(kSlurmVariables, {{"SLURM_STEP_NUM_TASKS", "6"}}));
  EXPECT_EQ(job.size, 6);
}

TEST(LauncherEnvironment, TasksPerNodeIsOnlyALimit) {
  const auto job = read_launcher_environment(
      with(kSlurmVariables, {{"SLURM_NTASKS_PER_NODE", "7"}}));
  EXPECT_EQ(job.local_size, std::nullopt);
}

TEST(LauncherEnvironment, ABatchScriptWorksAlone) {
  const std::vector<EnvironmentMap> shells{
      {{"SLURM_NTASKS", "4"}, {"SLURM_JOB_ID", "1"}},
      {{"SLURM_NTASKS", "4"}, {"SLURM_JOB_ID", "1"}, {"SLURM_PROCID", "0"}},
      {{"SLURM_NTASKS", "4"},
       {"SLURM_JOB_ID", "1"},
       {"SLURM_PROCID", "0"},
       {"SLURM_STEP_ID", "4294967291"}},
      {{"SLURM_NTASKS", "1"}, {"SLURM_PROCID", "0"}},
  };
  for (const EnvironmentMap& shell : shells) {
    const auto job = read_launcher_environment(shell);
    EXPECT_EQ(job.size, 1);
    EXPECT_EQ(job.rank, 0);
    EXPECT_EQ(job.master_port, 0);
  }
}

TEST(LauncherEnvironment, SrunWithPmixIsSlurm) {
  EXPECT_EQ(
      read_launcher_environment(with(kSlurmVariables, {{"PMIX_RANK", "5"}}))
          .launcher,
      Launcher::kSlurm);
}

TEST(LauncherEnvironment, SrunWithPmi2TakesTheHostFromSlurm) {
  const auto job = read_launcher_environment(
      with(kSlurmVariables, {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}}));
  EXPECT_EQ(job.launcher, Launcher::kMpich);
  EXPECT_EQ(job.local_rank, 1);
  EXPECT_EQ(job.master_addr, "node03");
}

TEST(LauncherEnvironment, TorchrunComesBeforeTheLauncherThatStartedIt) {
  // mpirun or srun starts one torchrun per host: the outer ranks count hosts.
  const auto job = read_launcher_environment(
      with(with(kTorchrunVariables, kSlurmVariables),
           {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "4"}}));
  EXPECT_EQ(job.launcher, Launcher::kTorchrun);
  EXPECT_EQ(job.rank, 3);
}

TEST(LauncherEnvironment, NamesEveryMissingVariable) {
  EXPECT_THAT(error_of({{"RANK", "1"}, {"MASTER_ADDR", "a"}}),
              AllOf(HasSubstr("RANK is set but WORLD_SIZE is not"),
                    HasSubstr("torchrun"), HasSubstr("unset")));
  EXPECT_THAT(error_of({{"WORLD_SIZE", "2"}}),
              AllOf(HasSubstr("WORLD_SIZE is set but RANK is not"),
                    HasSubstr("but MASTER_ADDR is not"),
                    HasSubstr("but MASTER_PORT is not")));
  EXPECT_THAT(error_of({{"RANK", "0"}, {"WORLD_SIZE", "2"}}),
              AllOf(HasSubstr("MASTER_ADDR"), HasSubstr("MASTER_PORT")));
  EXPECT_THAT(error_of({{"OMPI_COMM_WORLD_RANK", "0"}}),
              HasSubstr("OMPI_COMM_WORLD_SIZE is not"));
  EXPECT_THAT(error_of({{"OMPI_COMM_WORLD_SIZE", "2"}}),
              HasSubstr("OMPI_COMM_WORLD_RANK is not"));
  EXPECT_THAT(error_of({{"PMI_RANK", "0"}}), HasSubstr("PMI_SIZE is not"));
  EXPECT_THAT(error_of({{"PMI_SIZE", "2"}}), HasSubstr("PMI_RANK is not"));
  EXPECT_THAT(error_of({{"PMIX_RANK", "0"}}), HasSubstr("PMI_SIZE is not"));
  EXPECT_THAT(error_of({{"SLURM_PROCID", "1"}}),
              HasSubstr("SLURM_NTASKS is not"));
}

TEST(LauncherEnvironment, RejectsWhatIsOutOfRange) {
  const struct {
    EnvironmentMap change;
    const char* text;
  } cases[] = {
      {{{"RANK", "8"}}, "RANK=8 must be below WORLD_SIZE=8"},
      {{{"RANK", "-1"}}, "RANK=-1 must be at least 0"},
      {{{"RANK", "3x"}}, "RANK=3x is not a whole number"},
      {{{"RANK", "99999999999"}}, "RANK=99999999999 is not a whole number"},
      {{{"WORLD_SIZE", "0"}}, "WORLD_SIZE=0 must be at least 1"},
      {{{"LOCAL_RANK", "2"}}, "LOCAL_RANK=2 must be below LOCAL_WORLD_SIZE=2"},
      {{{"LOCAL_WORLD_SIZE", "9"}},
       "LOCAL_WORLD_SIZE=9 must not exceed WORLD_SIZE=8"},
      {{{"MASTER_PORT", "65536"}}, "MASTER_PORT=65536 must be in 1 to 65535"},
      {{{"MASTER_PORT", "http"}}, "MASTER_PORT=http is not a whole number"},
  };
  for (const auto& [change, text] : cases) {
    EXPECT_THAT(error_of(with(kTorchrunVariables, change)), HasSubstr(text));
  }
  EXPECT_THAT(
      error_of(with(kOpenMpiVariables, {{"OMPI_COMM_WORLD_RANK", "2"}})),
      HasSubstr("OMPI_COMM_WORLD_RANK=2 must be below OMPI_COMM_WORLD_SIZE=2"));
  EXPECT_THAT(error_of(with(kMpichVariables, {{"PMI_RANK", "4"}})),
              HasSubstr("PMI_RANK=4 must be below PMI_SIZE=4"));
  EXPECT_THAT(error_of(with(kSlurmVariables, {{"SLURM_PROCID", "8"}})),
              HasSubstr("SLURM_PROCID=8 must be below SLURM_NTASKS=8"));
}

TEST(LauncherEnvironment, ReportsEverythingAtOnce) {
  EXPECT_THAT(
      error_of({{"RANK", "3"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "x"}}),
      AllOf(HasSubstr("RANK=3 must be below WORLD_SIZE=2"),
            HasSubstr("LOCAL_RANK=x"), HasSubstr("MASTER_ADDR"),
            HasSubstr("MASTER_PORT")));
}

TEST(LauncherEnvironment, RejectsLaunchersThatDisagree) {
  const EnvironmentMap torch{{"RANK", "1"},
                             {"WORLD_SIZE", "2"},
                             {"MASTER_ADDR", "localhost"},
                             {"MASTER_PORT", "29500"}};
  EXPECT_EQ(error_of(with(torch, kOpenMpiVariables)), "no error");
  EXPECT_THAT(error_of(with(with(torch, kOpenMpiVariables), {{"RANK", "0"}})),
              AllOf(HasSubstr("RANK=0 contradicts OMPI_COMM_WORLD_RANK=1"),
                    Not(HasSubstr("WORLD_SIZE=2 contradicts"))));
  EXPECT_THAT(
      error_of(with(with(torch, kOpenMpiVariables), {{"WORLD_SIZE", "4"}})),
      HasSubstr("WORLD_SIZE=4 contradicts OMPI_COMM_WORLD_SIZE=2"));
  EXPECT_THAT(error_of(with(torch, kMpichVariables)),
              AllOf(HasSubstr("RANK=1 contradicts PMI_RANK=2"),
                    HasSubstr("WORLD_SIZE=2 contradicts PMI_SIZE=4")));
  EXPECT_THAT(error_of(with(with(torch, kSlurmVariables),
                            {{"SLURM_NTASKS", "2"}, {"SLURM_PROCID", "0"}})),
              HasSubstr("RANK=1 contradicts SLURM_PROCID=0"));
  // srun starts one process per host, which starts the ranks by itself.
  EXPECT_EQ(error_of(with(with(torch, kSlurmVariables),
                          {{"SLURM_NTASKS", "1"}, {"SLURM_PROCID", "0"}})),
            "no error");
}

TEST(LauncherEnvironment, FindsTheFirstHostOfANodeList) {
  const struct {
    const char* list;
    const char* host;
  } cases[] = {
      {"node7", "node7"},
      {"node7,node9", "node7"},
      {"node[03-05,9]", "node03"},
      {"node[3,5-9],x1", "node3"},
      {"gpu-a,gpu-b", "gpu-a"},
      {"rack[1-2]n[03-05]", "rack1n03"},
      {"c[001-002]-ib,d", "c001-ib"},
      {"[10-11].cluster", "10.cluster"},
  };
  for (const auto& [list, host] : cases) {
    EXPECT_EQ(first_host_of(list), host) << list;
  }
  EXPECT_THROW(first_host_of(""), c10::ValueError);
  EXPECT_THROW(first_host_of("node[03"), c10::ValueError);
  EXPECT_THAT(error_of(with(kSlurmVariables, {{"SLURM_NODELIST", "node[3"}})),
              HasSubstr("bracket that is not closed"));
}

TEST(LauncherEnvironment, DerivedPortsAreStableSpreadAndNotEphemeral) {
  EXPECT_EQ(port_of_job("4711.0"), port_of_job("4711.0"));
  std::vector<int> ports;
  for (int job = 0; job < 1000; ++job) {
    const int port = port_of_job(std::to_string(job));
    EXPECT_GE(port, 10000);
    EXPECT_LT(port, 30000);
    ports.push_back(port);
  }
  std::sort(ports.begin(), ports.end());
  const auto distinct = std::unique(ports.begin(), ports.end()) - ports.begin();
  EXPECT_GT(distinct, 950);
}

TEST(LauncherEnvironment, TimeOutsOfVariablesReplaceTheProgramsOwn) {
  using std::chrono::milliseconds;
  const WorldOptions given{.timeout = milliseconds(7),
                           .rendezvous_timeout = milliseconds(8)};
  auto options = with_variables_of({{"NFOLD_TIMEOUT", ""}}, given);
  EXPECT_EQ(options.timeout, milliseconds(7));
  options = with_variables_of(
      {{"NFOLD_TIMEOUT", "2.5"}, {"NFOLD_RENDEZVOUS_TIMEOUT", "30"}}, given);
  EXPECT_EQ(options.timeout, milliseconds(2500));
  EXPECT_EQ(options.rendezvous_timeout, milliseconds(30000));
  options = with_variables_of({{"NFOLD_TIMEOUT", "9"}}, given);
  EXPECT_EQ(options.rendezvous_timeout, milliseconds(8));
  EXPECT_EQ(options.stall_check, WorldOptions().stall_check);
}

TEST(LauncherEnvironment, LookingForStallsCanBeTurnedOff) {
  const auto check_of = [](const char* text) {
    return with_variables_of({{"NFOLD_STALL_CHECK", text}}, {}).stall_check;
  };
  EXPECT_EQ(check_of("0.5"), std::chrono::milliseconds(500));
  EXPECT_EQ(check_of("0"), std::chrono::milliseconds(0));
  EXPECT_THROW(check_of("-1"), c10::ValueError);
}

TEST(LauncherEnvironment, TimeOutsMustBeNumbersAboveZero) {
  for (const char* text : {"0", "-1", "10s", "soon", "nan", "1e300"}) {
    try {
      with_variables_of({{"NFOLD_TIMEOUT", text}}, {});
      FAIL() << text << " was accepted";
    } catch (const c10::ValueError& error) {
      EXPECT_THAT(message_of(error),
                  AllOf(HasSubstr("NFOLD_TIMEOUT="), HasSubstr(text)));
    }
  }
}

TEST(LauncherEnvironment, ReadsTheEnvironmentOfThisProcess) {
  EXPECT_NE(process_environment().find("PATH"), process_environment().end());
}

}  // namespace
}  // namespace nfold
