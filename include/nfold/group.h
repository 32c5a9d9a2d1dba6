// File: nfold/group.h
//
// A group is an ordered set of ranks that communicate, with a name that
// appears in errors, logs and reports. Groups are made by World (the group of
// all ranks) and by Mesh (all others); user code only passes them on.
//
//   nfold::Group& group = mesh.group("data_parallel");
//   nfold::all_reduce(group, tensor).wait();
//
// Collectives (nfold/collectives.h) run in the order in which they were
// issued, one at a time per group, on the group's own thread, so a caller may
// compute while they run. Every rank of the group must issue the same
// collectives in the same order; a rank that does not is an error on all
// ranks that names the rank and both collectives. Ranks that wait for each
// other in different groups raise after some seconds
// (WorldOptions::stall_check), and name each other's collectives.
//
// A group whose collective failed stays failed: what follows raises the first
// error again. Tear down and restart from a checkpoint.
//
// Destroying a group runs what was issued to its end, then closes its
// connections; a rank that still waits for this one gets an error at once.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace nfold {

enum class Collective : std::uint8_t {
  kAllGather,
  kReduceScatter,
  kAllReduce,
  kBroadcast,
  kAllToAll,
  kBarrier,
};
inline constexpr int kNumCollectives = 6;

// "all_gather", "reduce_scatter", ...: the word used in logs and errors.
const char* name_of(Collective collective);

// What one rank has sent so far, in collectives that have finished. `bytes` is
// payload this rank sent to others: without headers, and without what it kept
// for itself.
struct CommCount {
  std::int64_t calls = 0;
  std::int64_t bytes = 0;
};
using CommCounts = std::array<CommCount, kNumCollectives>;

class GroupImpl;

class Group {
 public:
  explicit Group(std::unique_ptr<GroupImpl> impl);
  ~Group();
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  const std::string& name() const;
  // This rank's position in the group, 0 to size()-1.
  int rank() const;
  int size() const;
  // This rank in the world.
  int global_rank() const;
  // Position in the group -> rank in the world.
  const std::vector<int>& global_ranks() const;
  // How its bytes travel: "shm", "gloo", or "none" for one rank.
  const char* transport() const;
  // Counts since construction. Callable from any thread.
  CommCounts counts() const;
  // Time the group's thread spent in collectives, waiting for other ranks
  // included. Callable from any thread.
  std::chrono::nanoseconds busy_time() const;

  GroupImpl& impl() { return *impl_; }

 private:
  std::unique_ptr<GroupImpl> impl_;
};

}  // namespace nfold
