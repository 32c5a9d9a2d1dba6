// File: group_impl.h
//
// What is behind a Group: a transport, one thread that runs the collectives in
// the order of issue, the counters, and the first failure.
//
//   GroupSpec spec{.name = "data_parallel", .global_ranks = {0, 1}, ...};
//   auto group = make_group(spec, std::move(transport));
//   group->impl().set_label("step 12, gradient bucket 3");
//   all_reduce(*group, tensor).wait();    // errors carry the label
//
// A collective is issued from any thread and runs on the group's own. A group
// of one rank has neither thread nor transport: its collectives are done when
// the call returns.
//
// [Note: Failed groups]
// The first failure is final: the transport is closed, so that the peers find
// out at once instead of waiting for their time-out, and every later
// collective raises the same text. Where the group has a store the first rank
// to fail leaves its text there, and ranks that lose a connection in the
// aftermath quote it: the process that died is named by all, not only by
// those that happened to talk to it. One that finds nothing there, as its peer
// failed in another group, quotes the first rank of the job to fail. The store
// may be unreachable by then, so that exchange is given little time.
//
// A collective that can never end, because ranks wait for each other in
// different groups, is ended from another thread (stall_watch.h): condemn()
// says why, then abort() makes the transport raise. The peers may be quicker
// and close their connections in between; that is no other reason.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <vector>

#include "comm/blocked_callers.h"
#include "comm/collectives_call.h"
#include "comm/group_worker.h"
#include "comm/pending.h"
#include "comm/transport.h"
#include "nfold/collectives.h"
#include "nfold/group.h"

namespace nfold {

struct GroupSpec {
  std::string name;
  // Position in the group -> rank in the world.
  std::vector<int> global_ranks;
  // This rank's position in the group.
  int rank = 0;
  // The host of each position, for errors. Empty if all are on one.
  std::vector<std::string> host_names{};
  // Of the store's host, where the job has several.
  std::string store_host{};
  // How long a collective may take, waiting for late ranks included.
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
  // Where the first failing rank leaves its text; a name space that only
  // this group uses. May be null.
  c10::intrusive_ptr<c10d::Store> store{};
  // The same for the first rank of the job. May be null.
  c10::intrusive_ptr<c10d::Store> job_store{};
  // Among the groups of the world, the same on all ranks.
  int number = 0;
  // Where it is noted who waits in the group. May be null.
  std::shared_ptr<BlockedCallers> callers{};
};

// The transport may be null for one rank, and so may the worker: one is made
// where it is needed. Raises c10::ValueError when the spec contradicts itself.
std::unique_ptr<Group> make_group(
    GroupSpec spec, std::unique_ptr<GroupTransport> transport,
    std::unique_ptr<GroupWorker> worker = nullptr);

class GroupImpl : private BlockedCallers::WatchedGroup {
 public:
  // Runs a collective and returns the bytes that this rank gave to others.
  using Body =
      std::function<std::int64_t(GroupTransport&, const CollectiveCall& call)>;

  GroupImpl(GroupSpec spec, std::unique_ptr<GroupTransport> transport,
            std::unique_ptr<GroupWorker> worker);
  // Runs what was issued, to its end or its time-out.
  ~GroupImpl() override;

  const GroupSpec& spec() const { return spec_; }
  int rank() const { return spec_.rank; }
  int size() const { return static_cast<int>(spec_.global_ranks.size()); }

  // What the caller is doing, for the errors of collectives issued from now
  // on: "step 12, gradient bucket 3".
  void set_label(std::string label);
  // Peers must issue collectives with equal tags, else they raise as for
  // different collectives. For callers whose calls look alike: a hash of what
  // is communicated, say. 0 at first.
  void set_tag(std::uint64_t tag);

  // Runs the body as the group's next collective, on its thread, with `call`
  // (sequence and tag are filled in). Raises c10::DistBackendError if the
  // group has failed.
  Pending issue(CollectiveCall call, Body body);
  // For groups of one rank: counts a call that is already done.
  Pending count_local(Collective kind);

  // Null for one rank.
  const GroupTransport* transport() const { return transport_.get(); }
  // Null unless the ranks share memory.
  std::shared_ptr<ShmChannel> shm_channel() const;

  CommCounts counts() const;
  std::chrono::nanoseconds busy_time() const;

 private:
  struct Counter {
    std::atomic<std::int64_t> calls{0};
    std::atomic<std::int64_t> bytes{0};
  };
  struct Job {
    std::shared_ptr<const IssuedCall> issued;
    Body body;
    std::shared_ptr<Pending::State> state;
  };

  const std::string& watched_name() const override { return spec_.name; }
  std::uint64_t num_entered() const override;
  std::string label() const override;
  void condemn(const std::string& reason) override;
  void abort() override;

  void run(Job& job);
  // "[rank 1] group 'world': all_reduce #3 of 8 float32 (step 12) failed: ".
  std::string failure_text(const Job& job, const std::string& reason) const;
  void fail(Job& job, std::string text);
  // Of condemn(), or empty.
  std::string reason() const;
  // Leaves the text in the stores, or adds that of the first rank to fail.
  // `is_aftermath`: this rank's failure may follow from another's.
  std::string exchange_failure(const std::string& text, bool is_aftermath);

  const GroupSpec spec_;
  std::unique_ptr<GroupTransport> transport_;
  std::array<Counter, kNumCollectives> counters_;
  std::atomic<std::int64_t> busy_ns_{0};

  mutable std::mutex mutex_;
  std::string label_;  // guarded by mutex_, as are the following
  std::uint64_t tag_ = 0;
  std::uint64_t sequence_ = 0;
  std::string failure_;  // of the first failing collective, or empty
  std::string reason_;   // of condemn()
  std::shared_ptr<const IssuedCall> last_issued_;

  // Last, so that the thread ends before what it uses.
  std::unique_ptr<GroupWorker> worker_;
};

}  // namespace nfold
