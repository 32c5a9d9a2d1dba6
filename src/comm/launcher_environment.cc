#include "comm/launcher_environment.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "nfold/errors.h"

namespace nfold {
namespace {

using Name = std::string_view;

// What torch uses where nothing else is said.
constexpr int kDefaultPort = 29500;

// Reads variables and collects what is wrong with them, so that a user sees
// everything at once.
class Reader {
 public:
  explicit Reader(const EnvironmentMap& variables) : variables_(variables) {}

  // Empty counts as unset: `RANK= program` means that there is no rank.
  bool has(Name name) const { return !text(name).empty(); }

  std::string_view text(Name name) const {
    const auto found = variables_.find(name);
    return found == variables_.end() ? std::string_view() : found->second;
  }

  // The first of `names` that is set, or an empty name.
  Name first_set(std::initializer_list<Name> names) const {
    for (Name name : names) {
      if (has(name)) return name;
    }
    return {};
  }

  std::string_view first_text(std::initializer_list<Name> names) const {
    return text(first_set(names));
  }

  // Absent if unset or wrong; the latter is also a problem.
  std::optional<int> number(Name name, int least, int most = INT_MAX) {
    const std::string_view value = text(name);
    if (value.empty()) return std::nullopt;
    int result = 0;
    const auto [end, error] =
        std::from_chars(value.data(), value.data() + value.size(), result);
    if (error != std::errc() || end != value.data() + value.size()) {
      problem("{}={} is not a whole number", name, value);
      return std::nullopt;
    }
    if (result < least || result > most) {
      problem("{}={} must be {}", name, value,
              most == INT_MAX ? fmt::format("at least {}", least)
                              : fmt::format("in {} to {}", least, most));
      return std::nullopt;
    }
    return result;
  }

  std::optional<int> first_number(std::initializer_list<Name> names,
                                  int least) {
    return number(first_set(names), least);
  }

  template <typename... Args>
  void problem(fmt::format_string<Args...> format, Args&&... args) {
    // One variable may be read more than once; one line about it is enough.
    std::string text = fmt::format(format, std::forward<Args>(args)...);
    if (std::find(problems_.begin(), problems_.end(), text) ==
        problems_.end()) {
      problems_.push_back(std::move(text));
    }
  }

  // Says that what `set` belongs to lacks every unset variable of `needed`.
  void require(Name set, std::initializer_list<Name> needed) {
    for (Name name : needed) {
      if (!has(name)) problem("{} is set but {} is not", set, name);
    }
  }

  void raise_problems(Launcher launcher) const {
    if (problems_.empty()) return;
    std::string list;
    for (const std::string& line : problems_) list += "\n  - " + line;
    TORCH_CHECK_VALUE(
        false, "The environment variables of the launcher (", name_of(launcher),
        ") do not describe a job:", list,
        "\nStart all ranks with one launcher (nfold launch, torchrun, mpirun "
        "or srun), or unset these variables to run one process. "
        "docs/launchers.md lists what each launcher sets.");
  }

 private:
  const EnvironmentMap& variables_;
  std::vector<std::string> problems_;
};

// The sizes and ranks of one launcher's family of variables.
struct Family {
  Name rank;
  Name size;
  Name local_rank;
  Name local_size;
};

void read_ranks(Reader& env, const Family& names, LauncherEnvironment& job) {
  const auto rank = env.number(names.rank, 0);
  const auto size = env.number(names.size, 1);
  job.local_rank = env.number(names.local_rank, 0);
  job.local_size = env.number(names.local_size, 1);
  job.rank = rank.value_or(0);
  job.size = size.value_or(1);
  if (rank && size && *rank >= *size) {
    env.problem("{}={} must be below {}={}", names.rank, *rank, names.size,
                *size);
  }
  if (job.local_rank && job.local_size && *job.local_rank >= *job.local_size) {
    env.problem("{}={} must be below {}={}", names.local_rank, *job.local_rank,
                names.local_size, *job.local_size);
  }
  if (size && job.local_size && *job.local_size > *size) {
    env.problem("{}={} must not exceed {}={}", names.local_size,
                *job.local_size, names.size, *size);
  }
}

// A batch script, and a shell of salloc, carry the variables of task 0
// although srun started nothing. Slurm numbers such pseudo steps from the top
// of the 32-bit range, or gives a script no step at all.
bool is_in_slurm_step(const Reader& env) {
  if (!env.has("SLURM_PROCID")) return false;
  const std::string_view step =
      env.first_text({"SLURM_STEP_ID", "SLURM_STEPID"});
  if (!step.empty()) return step.size() < 10 || step < "4294967280";
  return env.text("SLURM_PROCID") != "0" || !env.has("SLURM_JOB_ID");
}

Name slurm_size_name(const Reader& env) {
  return env.first_set(
      {"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"});
}

std::string_view slurm_node_list(const Reader& env) {
  return env.first_text(
      {"SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"});
}

// One launcher may start another, such as srun one torchrun per host, and the
// outer one's variables then rightly differ. The inner one marks its ranks.
bool is_marked_by_inner_launcher(const Reader& env) {
  return env.has("TORCHELASTIC_RUN_ID") || env.has("NFOLD_LAUNCH_ID");
}

// `same_size_only`: a differing size is legitimate, a differing rank within
// the same size is not.
void check_agreement(Reader& env, const Family& inner, const Family& outer,
                     bool same_size_only) {
  const auto inner_rank = env.number(inner.rank, 0);
  const auto outer_rank = env.number(outer.rank, 0);
  const auto inner_size = env.number(inner.size, 1);
  const auto outer_size = env.number(outer.size, 1);
  const bool sizes_differ =
      inner_size && outer_size && *inner_size != *outer_size;
  if (sizes_differ && same_size_only) return;
  if (sizes_differ) {
    env.problem("{}={} contradicts {}={}", inner.size, *inner_size, outer.size,
                *outer_size);
  }
  if (inner_rank && outer_rank && *inner_rank != *outer_rank) {
    env.problem("{}={} contradicts {}={}", inner.rank, *inner_rank, outer.rank,
                *outer_rank);
  }
}

constexpr Family kTorchrun{"RANK", "WORLD_SIZE", "LOCAL_RANK",
                           "LOCAL_WORLD_SIZE"};
constexpr Family kOpenMpi{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                          "OMPI_COMM_WORLD_LOCAL_RANK",
                          "OMPI_COMM_WORLD_LOCAL_SIZE"};

Family mpich_family(const Reader& env) {
  // srun with its PMI-2 plugin sets PMI_RANK, but the rank on the host only
  // under Slurm's own name.
  return {
      env.has("PMI_RANK") ? Name("PMI_RANK") : Name("PMIX_RANK"), "PMI_SIZE",
      env.first_set({"MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "SLURM_LOCALID"}),
      env.first_set({"MPI_LOCALNRANKS", "PALS_LOCAL_SIZE"})};
}

Family slurm_family(const Reader& env) {
  return {"SLURM_PROCID", slurm_size_name(env), "SLURM_LOCALID", {}};
}

void read_torchrun(Reader& env, LauncherEnvironment& job) {
  const Name set = env.first_set({"RANK", "WORLD_SIZE"});
  env.require(set, {"RANK", "WORLD_SIZE"});
  read_ranks(env, kTorchrun, job);
  if (job.size > 1) env.require(set, {"MASTER_ADDR", "MASTER_PORT"});
  job.uses_agent_store = env.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  job.attempt = fmt::format(
      "{}.{}", env.first_text({"TORCHELASTIC_RUN_ID", "NFOLD_LAUNCH_ID"}),
      env.text("TORCHELASTIC_RESTART_COUNT"));
  if (is_marked_by_inner_launcher(env)) return;
  check_agreement(env, kTorchrun, kOpenMpi, /*same_size_only=*/false);
  if (!env.has(kOpenMpi.rank)) {
    check_agreement(env, kTorchrun, mpich_family(env),
                    /*same_size_only=*/false);
  }
  if (is_in_slurm_step(env)) {
    check_agreement(env, kTorchrun, slurm_family(env),
                    /*same_size_only=*/true);
  }
}

void read_open_mpi(Reader& env, LauncherEnvironment& job) {
  env.require(env.first_set({kOpenMpi.rank, kOpenMpi.size}),
              {kOpenMpi.rank, kOpenMpi.size});
  read_ranks(env, kOpenMpi, job);
  // The job id of mpirun comes from its process id and so comes again; the
  // transport key is random.
  job.attempt = env.first_text({"OMPI_MCA_orte_precondition_transports",
                                "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"});
}

void read_slurm_step(Reader& env, LauncherEnvironment& job) {
  if (slurm_size_name(env).empty()) {
    env.problem("SLURM_PROCID is set but SLURM_NTASKS is not");
  }
  read_ranks(env, slurm_family(env), job);
  // The number per host is an upper limit: it is the number only if the hosts
  // are just enough. Otherwise World counts.
  const auto per_host = env.number("SLURM_NTASKS_PER_NODE", 1);
  const auto num_hosts =
      env.first_number({"SLURM_STEP_NUM_NODES", "SLURM_NNODES"}, 1);
  if (num_hosts == 1) {
    job.local_size = job.size;
  } else if (per_host && *per_host * num_hosts.value_or(1) == job.size) {
    job.local_size = per_host;
  }
  job.attempt =
      fmt::format("{}.{}", env.first_text({"SLURM_JOB_ID", "SLURM_JOBID"}),
                  env.first_text({"SLURM_STEP_ID", "SLURM_STEPID"}));
  if (job.attempt == ".") job.attempt.clear();
}

void read_mpich(Reader& env, LauncherEnvironment& job) {
  const Family names = mpich_family(env);
  if (env.has("PMI_SIZE") && !env.has(names.rank)) {
    env.problem("PMI_SIZE is set but PMI_RANK is not");
  }
  env.require(names.rank, {"PMI_SIZE"});
  read_ranks(env, names, job);
  job.attempt = env.first_text(
      {"PALS_APID", "PMI_JOBID", "PMIX_NAMESPACE", "SLURM_JOB_ID"});
}

// Where the ranks of mpirun and srun meet: as MASTER_ADDR and MASTER_PORT say,
// else on the only or the first host, at a port that follows from the job.
void derive_address(Reader& env, LauncherEnvironment& job) {
  const std::string_view node_list = slurm_node_list(env);
  const bool is_one_host = job.local_size == job.size;
  if (!job.master_addr.empty()) {
    // Given.
  } else if (is_one_host) {
    job.master_addr = "127.0.0.1";
  } else if (!node_list.empty()) {
    try {
      job.master_addr = first_host_of(node_list);
    } catch (const c10::ValueError& error) {
      env.problem("{}", error.what_without_backtrace());
    }
  } else {
    env.problem(
        "MASTER_ADDR is not set and nothing names the host of rank 0; pass it "
        "to every rank, for example mpirun -x MASTER_ADDR=HOST or mpiexec "
        "-genv MASTER_ADDR HOST (127.0.0.1 if all ranks run on one host)");
  }
  if (job.master_port == 0) {
    job.is_port_derived = true;
    job.master_port =
        job.attempt.empty() ? kDefaultPort : port_of_job(job.attempt);
  }
}

Launcher recognise(const Reader& env) {
  if (env.has("RANK") || env.has("WORLD_SIZE")) return Launcher::kTorchrun;
  if (env.has(kOpenMpi.rank) || env.has(kOpenMpi.size)) {
    return Launcher::kOpenMpi;
  }
  // srun with its PMIx plugin sets PMIX_RANK but no size.
  const bool has_pmi = env.has("PMI_RANK") || env.has("PMI_SIZE");
  if (has_pmi || (env.has("PMIX_RANK") && !is_in_slurm_step(env))) {
    return Launcher::kMpich;
  }
  if (is_in_slurm_step(env)) return Launcher::kSlurm;
  return Launcher::kNone;
}

}  // namespace

const char* name_of(Launcher launcher) {
  switch (launcher) {
    case Launcher::kNone:
      return "none";
    case Launcher::kTorchrun:
      return "torchrun";
    case Launcher::kOpenMpi:
      return "Open MPI";
    case Launcher::kMpich:
      return "MPICH";
    case Launcher::kSlurm:
      return "Slurm";
  }
  TORCH_INTERNAL_ASSERT(false, "unknown launcher ", static_cast<int>(launcher));
}

EnvironmentMap process_environment() {
  EnvironmentMap variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view line = *entry;
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos) continue;
    variables.emplace(line.substr(0, equals), line.substr(equals + 1));
  }
  return variables;
}

LauncherEnvironment read_launcher_environment(const EnvironmentMap& variables) {
  Reader env(variables);
  LauncherEnvironment job;
  job.launcher = recognise(env);
  switch (job.launcher) {
    case Launcher::kNone:
      return job;
    case Launcher::kTorchrun:
      read_torchrun(env, job);
      break;
    case Launcher::kOpenMpi:
      read_open_mpi(env, job);
      break;
    case Launcher::kMpich:
      read_mpich(env, job);
      break;
    case Launcher::kSlurm:
      read_slurm_step(env, job);
      break;
  }
  if (job.size > 1) {
    job.master_addr = env.text("MASTER_ADDR");
    job.master_port = env.number("MASTER_PORT", 1, 65535).value_or(0);
    if (job.launcher != Launcher::kTorchrun) derive_address(env, job);
  } else {
    job.uses_agent_store = false;
  }
  env.raise_problems(job.launcher);
  return job;
}

namespace {

std::optional<Transport> transport_of(const EnvironmentMap& variables) {
  constexpr char kVariable[] = "NFOLD_TRANSPORT";
  const auto found = variables.find(kVariable);
  if (found == variables.end() || found->second.empty()) return std::nullopt;
  for (const auto transport :
       {Transport::kAuto, Transport::kShm, Transport::kGloo}) {
    if (found->second == name_of(transport)) return transport;
  }
  TORCH_CHECK_VALUE(false, kVariable, "=", found->second,
                    ": expected auto, shm or gloo");
}

}  // namespace

WorldOptions with_variables_of(const EnvironmentMap& variables,
                               WorldOptions options) {
  const auto replace = [&](Name name, std::chrono::milliseconds& time,
                           bool may_be_zero = false) {
    const auto found = variables.find(name);
    if (found == variables.end() || found->second.empty()) return;
    const std::string& text = found->second;
    double seconds = 0;
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), seconds);
    // A year, far below what overflows.
    constexpr double kMost = 365.0 * 24 * 3600;
    TORCH_CHECK_VALUE(error == std::errc() &&
                          end == text.data() + text.size() &&
                          (seconds >= 0.001 || (may_be_zero && seconds == 0)) &&
                          seconds <= kMost,
                      name, "=", text, ": expected a number of seconds",
                      may_be_zero ? ", or 0" : " above zero");
    time = std::chrono::milliseconds(std::llround(seconds * 1000));
  };
  replace("NFOLD_TIMEOUT", options.timeout);
  replace("NFOLD_RENDEZVOUS_TIMEOUT", options.rendezvous_timeout);
  replace("NFOLD_STALL_CHECK", options.stall_check, /*may_be_zero=*/true);
  options.transport = transport_of(variables).value_or(options.transport);
  return options;
}

std::string first_host_of(std::string_view node_list) {
  std::string host;
  for (std::size_t i = 0; i < node_list.size(); ++i) {
    const char letter = node_list[i];
    if (letter == ',') break;
    if (letter != '[') {
      host += letter;
      continue;
    }
    const std::size_t close = node_list.find(']', i);
    TORCH_CHECK_VALUE(close != std::string_view::npos, "The Slurm node list ",
                      node_list, " has a bracket that is not closed");
    // The first of "03-05,9" is what stands before the first '-' or ','; its
    // leading zeros belong to the name.
    const std::string_view ranges = node_list.substr(i + 1, close - i - 1);
    host += ranges.substr(0, ranges.find_first_of("-,"));
    i = close;
  }
  TORCH_CHECK_VALUE(!host.empty(), "The Slurm node list '", node_list,
                    "' names no host");
  return host;
}

int port_of_job(std::string_view job_id) {
  // FNV-1a: the same on every host and build, which std::hash does not
  // promise.
  std::uint64_t hash = 14695981039346656037ULL;
  for (const char letter : job_id) {
    hash = (hash ^ static_cast<unsigned char>(letter)) * 1099511628211ULL;
  }
  return 10000 + static_cast<int>(hash % 20000);
}

}  // namespace nfold
