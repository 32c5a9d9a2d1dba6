// File: shm_channel.h
//
// How the ranks of a group that share memory keep step: for each rank a slot
// with two counters and room for data, all in one segment.
//
// [Note: Phases]
// A collective is one or more phases, the same number on every rank. In each,
// a rank writes what it gives into its own half-slot, posts, waits until the
// peers it reads from have posted, reads, and says that it has taken. Halves
// alternate, so a rank may write the next phase while slow peers still read
// the last one; it waits only before it would overwrite what is still read.
//
//   channel.begin(call);                 // a collective
//   copy_to(channel.staging(channel.rank()), mine);
//   channel.post();                      // phase 1
//   channel.await(peer);                 // raises if it entered another one
//   copy_from(channel.staging(peer));
//   channel.take();
//   channel.prepare();                   // the half of phase 2 is free
//   ...
//
// Waiting spins for a moment where there are cores to spare, then sleeps on a
// futex. A rank that dies is noticed by the kernel: its thread holds a robust
// mutex. One that leaves or fails says so.
//
// Collective calls are for one thread at a time; await_word, abort and close
// for any.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "comm/blocked_callers.h"
#include "comm/collectives_call.h"
#include "comm/peer_errors.h"
#include "comm/shared_segment.h"

namespace nfold {

class ShmChannel {
 public:
  // Of a half-slot: large enough that a phase costs little beside its data,
  // small enough that the data are still in a cache when they are read.
  static constexpr std::int64_t kStagingBytes = std::int64_t{256} << 10;
  using Word = std::atomic<std::uint32_t>;

  static std::size_t bytes_for(int num_ranks);

  // The segment is of bytes_for(size) and was zero when the ranks opened it.
  ShmChannel(SharedSegment segment, PeerNames names,
             std::chrono::milliseconds timeout);
  ShmChannel(const ShmChannel&) = delete;
  ShmChannel& operator=(const ShmChannel&) = delete;

  int rank() const { return names_.rank; }
  int size() const { return static_cast<int>(names_.global_ranks.size()); }
  // This rank in the world.
  int global_rank() const { return names_.global_rank(names_.rank); }
  // The others, i = 1 to size - 1: from rank + 1, wrapping round.
  int peer(int i) const { return (rank() + i) % size(); }

  // Where await_word notes who waits, as in the group of that number. Before
  // the first of them.
  void note_waits(std::shared_ptr<BlockedCallers> callers, int group);

  // The calling thread stands for this rank: peers notice when it ends.
  void open();
  // By the same thread. Peers that wait for this rank raise.
  void close() noexcept;
  // Whatever waits, or would wait later, raises PeerError, kDiverged, with this
  // text.
  void abort(const std::string& text) noexcept;

  // Starts a collective and its first phase.
  void begin(const CollectiveCall& call);
  // Before writing for a phase after the first.
  void prepare();
  void post();
  // Until the peer has posted this phase.
  void await(int peer);
  void await_all();
  void take();

  // What the rank writes, and others read, in this phase: kStagingBytes.
  std::byte* staging(int of_rank) const;
  // After await: contributes zeros.
  bool is_empty(int peer) const;

  // For protocols beside the collectives: waits until a word that the peer
  // counts up, in memory shared with it, is at least `target` (counters wrap).
  // Raises PeerError when the peer is gone, has failed or takes too long;
  // `missing` then says what it did not do. The peer calls wake.
  void await_word(Word& word, std::uint32_t target, int peer,
                  const std::function<std::string()>& missing) const;
  static void wake(Word& word);

 private:
  struct Slot;
  enum class Presence : std::uint32_t { kHere, kGone };
  using Clock = std::chrono::steady_clock;
  // What to do about a peer that does not come in time.
  using OnTimeout = std::function<void()>;

  Slot& slot(int of_rank) const;
  void wait(Word& word, std::uint32_t target, int peer,
            Clock::time_point deadline, const OnTimeout& on_timeout) const;
  bool is_gone(int peer) const;
  std::vector<int> gone_peers() const;
  [[noreturn]] void raise_timeout(int peer) const;
  void check_aborted() const;

  SharedSegment segment_;
  const PeerNames names_;
  const std::chrono::milliseconds timeout_;
  const int num_spins_;
  CollectiveCall call_;
  Clock::time_point deadline_;
  std::uint32_t phase_ = 0;
  std::uint32_t collective_ = 0;
  bool is_first_phase_ = true;

  std::shared_ptr<BlockedCallers> callers_;
  int group_ = 0;
  std::atomic<bool> is_aborted_{false};
  mutable std::mutex abort_mutex_;
  std::string abort_text_;  // guarded by abort_mutex_
};

}  // namespace nfold
