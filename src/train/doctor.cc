#include "train/doctor.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/full.h>
#include <fmt/format.h>
#include <linux/io_uring.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <fstream>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "nfold/collectives.h"
#include "nfold/cores.h"
#include "nfold/errors.h"
#include "nfold/world.h"

namespace nfold::train {
namespace {

constexpr std::uint64_t kMiB = 1024 * 1024;
constexpr std::uint64_t kGiB = 1024 * kMiB;

std::string size_text(std::uint64_t bytes) {
  if (bytes >= kGiB) {
    return fmt::format("{:.1f} GiB", static_cast<double>(bytes) / kGiB);
  }
  return fmt::format("{:.0f} MiB", static_cast<double>(bytes) / kMiB);
}

// The value after "name:" in a file such as /proc/meminfo.
std::string value_in(const char* path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    std::string key = line.substr(0, colon);
    key.erase(key.find_last_not_of(" \t") + 1);
    if (key != name) continue;
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::uint64_t memory_bytes(const char* name) {
  const std::string value = value_in("/proc/meminfo", name);
  return value.empty() ? 0 : std::stoull(value) * 1024;
}

void examine_build(std::vector<Fact>& facts) {
  const char* section = "build";
  facts.push_back({section, "nfold", NFOLD_VERSION});
  facts.push_back({section, "torch", TORCH_VERSION});
  facts.push_back({section, "compiler", NFOLD_COMPILER});
  const std::string type = NFOLD_BUILD_TYPE;
  facts.push_back({section, "build type", type.empty() ? "none" : type,
                   type == "Release" || type == "RelWithDebInfo"
                       ? ""
                       : "slow; configure with --preset release to train"});
  const std::string sanitizers = NFOLD_SANITIZERS;
  facts.push_back({section, "sanitizers",
                   sanitizers.empty() ? "none" : sanitizers,
                   sanitizers.empty()
                       ? ""
                       : "for tests only; configure with --preset release to "
                         "train"});
  facts.push_back(
      {section, "CUDA", at::hasCUDA() ? "in torch" : "not in torch"});
}

std::string simd_text() {
  std::string text;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const std::pair<const char*, bool> features[] = {
      {"sse4.2", __builtin_cpu_supports("sse4.2") != 0},
      {"avx", __builtin_cpu_supports("avx") != 0},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx2", __builtin_cpu_supports("avx2") != 0},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16") != 0},
  };
  for (const auto& [name, is_supported] : features) {
    if (is_supported) text += (text.empty() ? "" : " ") + std::string(name);
  }
#elif defined(__aarch64__)
  text = "neon";
#endif
  return text.empty() ? "none known" : text;
}

void examine_processor(std::vector<Fact>& facts) {
  const char* section = "processor";
  std::string model = value_in("/proc/cpuinfo", "model name");
  utsname machine{};
  if (::uname(&machine) == 0) {
    facts.push_back({section, "kernel",
                     fmt::format("{} {} {}", machine.sysname, machine.release,
                                 machine.machine)});
    if (model.empty()) model = machine.machine;
  }
  facts.push_back({section, "model", model});
  facts.push_back({section, "cores",
                   fmt::format("{} usable of {}", usable_cores(),
                               ::sysconf(_SC_NPROCESSORS_ONLN))});
  const std::string simd = simd_text();
  const bool has_vector_unit = simd.find("avx2") != std::string::npos ||
                               simd.find("neon") != std::string::npos;
  facts.push_back({section, "SIMD", simd,
                   has_vector_unit ? ""
                                   : "no AVX2: optimizer steps run scalar "
                                     "code, several times slower"});
  facts.push_back({section, "torch kernels", at::get_cpu_capability()});
}

// The limit of the control group, if it is below the machine's memory.
std::uint64_t memory_limit_bytes() {
  for (const char* path : {"/sys/fs/cgroup/memory.max",
                           "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::uint64_t limit = 0;
    if (std::ifstream(path) >> limit) return limit;
  }
  return 0;
}

void examine_shared_memory(std::vector<Fact>& facts) {
  struct statvfs file_system {};
  if (::statvfs("/dev/shm", &file_system) != 0) {
    facts.push_back({"memory", "/dev/shm", "missing",
                     "mount -t tmpfs tmpfs /dev/shm (ranks of one host share "
                     "memory through it)"});
    return;
  }
  const std::uint64_t total = file_system.f_blocks * file_system.f_frsize;
  const std::uint64_t free = file_system.f_bavail * file_system.f_frsize;
  facts.push_back(
      {"memory", "/dev/shm",
       fmt::format("{}, {} free", size_text(total), size_text(free)),
       free >= kGiB ? ""
                    : "little room to share memory between ranks; "
                      "remount it larger (containers: "
                      "--shm-size=8g)"});
}

void examine_memory(std::vector<Fact>& facts) {
  const char* section = "memory";
  const std::uint64_t total = memory_bytes("MemTotal");
  const std::uint64_t limit = memory_limit_bytes();
  std::string text = fmt::format("{}, {} available", size_text(total),
                                 size_text(memory_bytes("MemAvailable")));
  if (limit > 0 && limit < total) {
    text += fmt::format(", limited to {}", size_text(limit));
  }
  facts.push_back({section, "RAM", text});
  examine_shared_memory(facts);
  rlimit locked{};
  ::getrlimit(RLIMIT_MEMLOCK, &locked);
  const bool is_unlimited = locked.rlim_cur == RLIM_INFINITY;
  facts.push_back({section, "lockable memory",
                   is_unlimited ? "unlimited" : size_text(locked.rlim_cur),
                   is_unlimited || locked.rlim_cur >= 64 * kMiB
                       ? ""
                       : "ulimit -l unlimited (pinned offload buffers need "
                         "it)"});
  std::string huge_pages;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"),
               huge_pages);
  const std::size_t open = huge_pages.find('[');
  const std::size_t close = huge_pages.find(']');
  const std::string mode =
      open == std::string::npos || close == std::string::npos
          ? "not available"
          : huge_pages.substr(open + 1, close - open - 1);
  facts.push_back({section, "huge pages",
                   fmt::format("transparent: {}; reserved: {}", mode,
                               value_in("/proc/meminfo", "HugePages_Total")),
                   mode == "never" ? "echo madvise > /sys/kernel/mm/"
                                     "transparent_hugepage/enabled"
                                   : ""});
}

void examine_files(std::vector<Fact>& facts) {
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  facts.push_back({"files", "open files", fmt::format("{}", files.rlim_cur),
                   files.rlim_cur >= 1024
                       ? ""
                       : "ulimit -n 4096 (each pair of ranks holds a "
                         "connection)"});
  io_uring_params parameters{};
  const long ring = ::syscall(__NR_io_uring_setup, 4, &parameters);
  Fact fact{"files", "io_uring", "permitted"};
  if (ring >= 0) {
    ::close(static_cast<int>(ring));
  } else if (errno == ENOSYS) {
    fact.value = "not in this kernel";
    fact.remedy = "Linux 5.6 or later; file offload works without, slower";
  } else {
    fact.value = fmt::format("refused ({})", std::strerror(errno));
    fact.remedy =
        "sysctl kernel.io_uring_disabled=0, or allow it in the container's "
        "seccomp profile; file offload works without, slower";
  }
  facts.push_back(fact);
}

// Two ranks as threads sum a vector. Returns what is wrong, or an empty text.
std::string try_transport(Transport transport) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::string problems[2];
  const auto run_rank = [&](int rank) {
    try {
      WorldOptions options;
      options.timeout = std::chrono::seconds(10);
      options.rendezvous_timeout = std::chrono::seconds(10);
      options.transport = transport;
      const World world = World::from_store(store, rank, 2, options);
      at::Tensor tensor = at::full({1000}, rank + 1.0);
      all_reduce(world.group(), tensor).wait();
      const auto sum = tensor.sum().item<double>();
      if (sum != 3000.0) problems[rank] = fmt::format("wrong sum {}", sum);
    } catch (const std::exception& error) {
      problems[rank] = message_of(error);
    }
  };
  std::thread peer(run_rank, 1);
  run_rank(0);
  peer.join();
  return problems[0].empty() ? problems[1] : problems[0];
}

void examine_transport(Transport transport, const char* way, const char* remedy,
                       bool is_needed, std::vector<Fact>& facts) {
  const auto begin = std::chrono::steady_clock::now();
  const std::string problem = try_transport(transport);
  const auto time = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - begin);
  Fact fact{"communication", name_of(transport)};
  if (problem.empty()) {
    fact.value = fmt::format("2 ranks {} agree ({} ms)", way, time.count());
  } else {
    fact.value = "failed: " + problem;
    fact.remedy = remedy;
    fact.is_fatal = is_needed;
  }
  facts.push_back(fact);
}

void examine_communication(std::vector<Fact>& facts) {
  examine_transport(Transport::kShm, "through shared memory",
                    "see /dev/shm above; until then ranks use gloo, which is "
                    "slower",
                    /*is_needed=*/false, facts);
  examine_transport(Transport::kGloo, "over loopback",
                    "check that 'lo' is up (ip link set lo up) and that local "
                    "TCP connections are not filtered",
                    /*is_needed=*/true, facts);
}

}  // namespace

std::vector<Fact> examine_machine() {
  std::vector<Fact> facts;
  examine_build(facts);
  examine_processor(facts);
  examine_memory(facts);
  examine_files(facts);
  examine_communication(facts);
  return facts;
}

std::string format_facts(const std::vector<Fact>& facts) {
  std::size_t width = 0;
  for (const Fact& fact : facts) width = std::max(width, fact.name.size());
  std::string text;
  std::string section;
  int num_remedies = 0;
  for (const Fact& fact : facts) {
    if (fact.section != section) {
      text += fmt::format("{}{}\n", section.empty() ? "" : "\n", fact.section);
      section = fact.section;
    }
    text += fmt::format("  {:<{}}  {}\n", fact.name, width, fact.value);
    if (fact.remedy.empty()) continue;
    text += fmt::format("  {:<{}}  -> {}\n", "", width, fact.remedy);
    ++num_remedies;
  }
  text += num_remedies == 0
              ? "\nNothing is lacking.\n"
              : fmt::format("\n{} to look at, marked ->.\n", num_remedies);
  return text;
}

bool has_fatal(const std::vector<Fact>& facts) {
  return std::any_of(facts.begin(), facts.end(),
                     [](const Fact& fact) { return fact.is_fatal; });
}

}  // namespace nfold::train
