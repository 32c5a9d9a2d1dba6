#include "comm/stall_watch.h"

#include <c10/util/thread_name.h>
#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>
#include <vector>

#include "base/log.h"
#include "comm/stall_judge.h"
#include "comm/store_text.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kNumStalledKey[] = "num_stalled";
// For the thread to end: it may be in a request to the store.
constexpr std::chrono::milliseconds kEndLimit{1000};

std::string status_key_of(int rank) { return fmt::format("status/{}", rank); }
std::string verdict_key_of(int index) {
  return fmt::format("verdict/{}", index);
}

}  // namespace

StallTimes times_of(std::chrono::milliseconds stall_check) {
  const auto tick = std::max(stall_check / 2, std::chrono::milliseconds(1));
  return {.stalled_after = stall_check, .tick = tick, .apart = stall_check};
}

// All that the thread uses, as it may be left behind.
struct StallWatch::Run {
  Run(Place where, std::shared_ptr<BlockedCallers> who, const StallTimes& when)
      : place(std::move(where)),
        callers(std::move(who)),
        times(when),
        judge(when.apart),
        has_status(static_cast<std::size_t>(place.size)) {}

  void loop();
  // Until the time has passed; false when the watch is to end.
  bool sleep(std::chrono::milliseconds time);
  c10d::Store& connection();

  void report();
  void say(RankStatus status);
  void obey();
  void obey(const StallVerdict& verdict, const std::string& key);
  // Until so many ranks have come here.
  void await_ready(const std::string& key, std::int64_t num_ranks);
  void judge_all();
  std::vector<RankStatus> read_statuses();

  Place place;
  std::shared_ptr<BlockedCallers> callers;
  const StallTimes times;

  // Of the thread alone.
  c10::intrusive_ptr<c10d::Store> store;  // null until it is needed
  bool is_stalled = false;
  std::uint64_t beat = 0;
  int num_verdicts = 0;  // that this rank has read
  StallJudge judge;
  int num_judged = 0;
  std::vector<bool> has_status;  // of each rank, for the judge

  std::mutex mutex;
  std::condition_variable changed;
  bool is_ending = false;  // guarded by mutex
  bool has_ended = false;  // guarded by mutex
};

StallWatch::StallWatch(const Place& place,
                       std::shared_ptr<BlockedCallers> callers,
                       const StallTimes& times)
    : run_(std::make_shared<Run>(place, std::move(callers), times)) {
  thread_ = std::thread([run = run_, log = log_rank()] {
    set_log_rank(log.rank, log.size);
    c10::setThreadName("nf:stalls");
    run->loop();
  });
}

StallWatch::~StallWatch() {
  std::unique_lock lock(run_->mutex);
  run_->is_ending = true;
  run_->changed.notify_all();
  const bool has_ended = run_->changed.wait_for(
      lock, kEndLimit, [this] { return run_->has_ended; });
  lock.unlock();
  if (has_ended) {
    thread_.join();
  } else {
    thread_.detach();
  }
}

void StallWatch::Run::loop() {
  try {
    while (sleep(times.tick)) {
      report();
      if (place.rank == 0) judge_all();
      if (is_stalled) obey();
    }
  } catch (const std::exception& error) {
    // The rank that serves the store is gone: each group finds out by itself.
    log_debug("ranks that wait for each other are not looked for any more: {}",
              message_of(error));
  }
  // The store may end with the World, not with this thread.
  store.reset();
  place.store.reset();
  callers.reset();
  const std::lock_guard lock(mutex);
  has_ended = true;
  changed.notify_all();
}

bool StallWatch::Run::sleep(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex);
  return !changed.wait_for(lock, time, [this] { return is_ending; });
}

c10d::Store& StallWatch::Run::connection() {
  if (!store) {
    store =
        c10::make_intrusive<c10d::PrefixStore>("stalls", place.store->clone());
  }
  return *store;
}

// Tells the others that this rank waits, or that it has gone on.
void StallWatch::Run::report() {
  const auto now = Clock::now();
  const bool was_stalled = is_stalled;
  RankStatus status;
  if (callers->blocked_for(now) >= times.stalled_after) {
    status = callers->status(now);
  }
  if (status.waits.empty() && !was_stalled) return;
  say(std::move(status));
  if (is_stalled != was_stalled) {
    connection().add(kNumStalledKey, is_stalled ? 1 : -1);
  }
}

void StallWatch::Run::say(RankStatus status) {
  status.rank = place.rank;
  status.beat = ++beat;
  is_stalled = !status.waits.empty();
  set_text(connection(), status_key_of(place.rank), text_of(status));
}

void StallWatch::Run::obey() {
  for (;;) {
    const std::string key = verdict_key_of(num_verdicts);
    if (!connection().check({key})) return;
    ++num_verdicts;
    obey(stall_verdict_of(text_at(connection(), key)), key);
  }
}

void StallWatch::Run::obey(const StallVerdict& verdict,
                           const std::string& key) {
  std::vector<std::uint64_t> own;
  std::set<int> ranks;
  for (const auto& [rank, id] : verdict.waits) {
    ranks.insert(rank);
    if (rank == place.rank) own.push_back(id);
  }
  if (own.empty()) return;
  for (const auto id : own) callers->condemn(id, verdict.text);
  try {
    await_ready(key + "/ready", static_cast<std::int64_t>(ranks.size()));
  } catch (const std::exception&) {
    // The store went with a rank that was quicker. What is wrong is known.
  }
  for (const auto id : own) callers->abort(id);
}

void StallWatch::Run::await_ready(const std::string& key,
                                  std::int64_t num_ranks) {
  // All look at least once in a tick; one may have failed in the meantime.
  const auto limit = Clock::now() + 2 * times.tick;
  auto num_ready = connection().add(key, 1);
  while (num_ready < num_ranks && Clock::now() < limit &&
         sleep(times.tick / 10)) {
    num_ready = connection().add(key, 0);
  }
}

void StallWatch::Run::judge_all() {
  if (connection().add(kNumStalledKey, 0) <= 0) return;
  const auto verdict = judge.look(read_statuses(), Clock::now());
  if (!verdict) return;
  set_text(connection(), verdict_key_of(num_judged++), text_of(*verdict));
}

std::vector<RankStatus> StallWatch::Run::read_statuses() {
  std::vector<std::string> keys;
  for (int rank = 0; rank < place.size; ++rank) {
    auto has = has_status.begin() + rank;
    if (!*has) *has = connection().check({status_key_of(rank)});
    if (*has) keys.push_back(status_key_of(rank));
  }
  std::vector<RankStatus> statuses;
  if (keys.empty()) return statuses;
  for (const auto& bytes : connection().multiGet(keys)) {
    statuses.push_back(rank_status_of({bytes.begin(), bytes.end()}));
  }
  return statuses;
}

}  // namespace nfold
