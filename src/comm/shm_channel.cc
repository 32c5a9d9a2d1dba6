#include "comm/shm_channel.h"

#include <c10/util/Exception.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <ctime>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "nfold/cores.h"

namespace nfold {
namespace {

constexpr std::size_t kLine = 64;
// Some ten microseconds: what a peer needs that is about to post.
constexpr int kSpins = 1000;
// How often a sleeper looks whether the peer still lives, and whether to wait
// any longer.
constexpr std::chrono::milliseconds kLook{50};

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

bool has_reached(std::uint32_t value, std::uint32_t target) {
  return static_cast<std::int32_t>(value - target) >= 0;
}

// Sleeps while `word` is `value`, or for `time`.
void futex_wait(ShmChannel::Word& word, std::uint32_t value,
                std::chrono::nanoseconds time) {
  timespec limit{};
  limit.tv_sec = time.count() / 1'000'000'000;
  limit.tv_nsec = time.count() % 1'000'000'000;
  ::syscall(SYS_futex, &word, FUTEX_WAIT, value, &limit, nullptr, 0);
}

// Spinning helps only if whoever is waited for runs at the same time.
int spins_for(int num_ranks) {
  return num_ranks <= usable_cores() ? kSpins : 0;
}

}  // namespace

// Counters on lines of their own: each is written by one rank and read by all.
struct alignas(kLine) ShmChannel::Slot {
  Word posted;
  alignas(kLine) Word taken;
  alignas(kLine) Word presence;
  // Collectives alternate between the two, as phases do between halves.
  alignas(kLine) CollectiveCall calls[2];
  // Held by the rank's thread.
  alignas(kLine) pthread_mutex_t life;
  alignas(kLine) std::byte halves[2][kStagingBytes];
};

std::size_t ShmChannel::bytes_for(int num_ranks) {
  return static_cast<std::size_t>(num_ranks) * sizeof(Slot);
}

ShmChannel::ShmChannel(SharedSegment segment, PeerNames names,
                       std::chrono::milliseconds timeout)
    : segment_(std::move(segment)),
      names_(std::move(names)),
      timeout_(timeout),
      num_spins_(spins_for(size())) {
  static_assert(Word::is_always_lock_free);
  TORCH_INTERNAL_ASSERT(segment_.num_bytes() == bytes_for(size()));
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&slot(rank()).life, &attributes);
  pthread_mutexattr_destroy(&attributes);
}

void ShmChannel::note_waits(std::shared_ptr<BlockedCallers> callers,
                            int group) {
  callers_ = std::move(callers);
  group_ = group;
}

ShmChannel::Slot& ShmChannel::slot(int of_rank) const {
  return reinterpret_cast<Slot*>(segment_.data())[of_rank];
}

void ShmChannel::open() { pthread_mutex_lock(&slot(rank()).life); }

void ShmChannel::close() noexcept {
  Slot& own = slot(rank());
  const auto gone = static_cast<std::uint32_t>(Presence::kGone);
  if (own.presence.exchange(gone) == gone) return;
  wake(own.posted);
  wake(own.taken);
  pthread_mutex_unlock(&own.life);
}

void ShmChannel::abort(const std::string& text) noexcept {
  // Sleepers look now and then, see kLook.
  const std::lock_guard lock(abort_mutex_);
  abort_text_ = text;
  is_aborted_ = true;
}

void ShmChannel::check_aborted() const {
  if (!is_aborted_) return;
  const std::lock_guard lock(abort_mutex_);
  throw PeerError(PeerError::Kind::kDiverged, abort_text_);
}

void ShmChannel::wake(Word& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void ShmChannel::begin(const CollectiveCall& call) {
  call_ = call;
  deadline_ = Clock::now() + timeout_;
  is_first_phase_ = true;
  prepare();
  slot(rank()).calls[++collective_ % 2] = call;
}

void ShmChannel::prepare() {
  // The phase to come overwrites what was written two phases before it.
  const std::uint32_t overwritten = phase_ - 1;
  for (int i = 1; i < size(); ++i) {
    wait(slot(peer(i)).taken, overwritten, peer(i), deadline_,
         [&, this] { raise_timeout(peer(i)); });
  }
  ++phase_;
}

void ShmChannel::post() {
  Word& posted = slot(rank()).posted;
  posted.store(phase_);
  wake(posted);
}

void ShmChannel::await(int peer) {
  wait(slot(peer).posted, phase_, peer, deadline_,
       [&, this] { raise_timeout(peer); });
  if (!is_first_phase_) return;
  const CollectiveCall& other = slot(peer).calls[collective_ % 2];
  if (differs(call_, other)) throw_diverged(names_, peer, other, call_);
}

void ShmChannel::await_all() {
  for (int i = 1; i < size(); ++i) await(peer(i));
}

void ShmChannel::take() {
  Word& taken = slot(rank()).taken;
  taken.store(phase_);
  wake(taken);
  is_first_phase_ = false;
}

std::byte* ShmChannel::staging(int of_rank) const {
  return slot(of_rank).halves[phase_ % 2];
}

bool ShmChannel::is_empty(int peer) const {
  return slot(peer).calls[collective_ % 2].is_empty;
}

void ShmChannel::await_word(Word& word, std::uint32_t target, int peer,
                            const std::function<std::string()>& missing) const {
  if (has_reached(word.load(std::memory_order_acquire), target)) return;
  const BlockedCallers::Scope scope(
      callers_.get(),
      {.group = group_, .peer = names_.global_rank(peer), .missing = &missing});
  try {
    wait(word, target, peer, Clock::now() + timeout_, [&] {
      throw PeerError(PeerError::Kind::kTimeout, names_.describe({peer}) + " " +
                                                     missing() + " within " +
                                                     seconds_text(timeout_));
    });
  } catch (const PeerError&) {
    const std::string reason = scope.reason();
    if (reason.empty()) throw;
    throw PeerError(PeerError::Kind::kDiverged, reason);
  }
}

void ShmChannel::wait(Word& word, std::uint32_t target, int peer,
                      Clock::time_point deadline,
                      const OnTimeout& on_timeout) const {
  for (int spin = 0; spin <= num_spins_; ++spin) {
    if (has_reached(word.load(std::memory_order_acquire), target)) return;
    pause_briefly();
  }
  for (;;) {
    const std::uint32_t value = word.load(std::memory_order_acquire);
    if (has_reached(value, target)) return;
    if (is_gone(peer)) {
      // It may have come before it went.
      if (has_reached(word.load(std::memory_order_acquire), target)) return;
      throw_lost(names_, gone_peers(), "transport: shared memory");
    }
    check_aborted();
    const auto left = deadline - Clock::now();
    if (left <= Clock::duration::zero()) on_timeout();
    futex_wait(word, value, std::min<Clock::duration>(left, kLook));
  }
}

bool ShmChannel::is_gone(int peer) const {
  Slot& other = slot(peer);
  if (other.presence.load() == static_cast<std::uint32_t>(Presence::kGone)) {
    return true;
  }
  switch (pthread_mutex_trylock(&other.life)) {
    case 0:  // not open yet
      pthread_mutex_unlock(&other.life);
      return false;
    case EOWNERDEAD:
      // Said in plain words for the others: glibc's trylock keeps a mutex that
      // cannot be recovered.
      other.presence.store(static_cast<std::uint32_t>(Presence::kGone));
      pthread_mutex_consistent(&other.life);
      pthread_mutex_unlock(&other.life);
      return true;
    default:
      return false;
  }
}

std::vector<int> ShmChannel::gone_peers() const {
  std::vector<int> gone;
  for (int i = 1; i < size(); ++i) {
    if (is_gone(peer(i))) gone.push_back(peer(i));
  }
  return gone;
}

void ShmChannel::raise_timeout(int peer) const {
  if (!is_first_phase_) throw_stuck(names_, peer, timeout_);
  std::vector<int> missing;
  for (int other = 0; other < size(); ++other) {
    if (other != rank() && !has_reached(slot(other).posted.load(), phase_)) {
      missing.push_back(other);
    }
  }
  if (missing.empty()) throw_stuck(names_, peer, timeout_);
  throw_missing(names_, missing, timeout_);
}

}  // namespace nfold
