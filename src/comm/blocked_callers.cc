#include "comm/blocked_callers.h"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

namespace nfold {
namespace {

std::uint64_t next_number() {
  static std::atomic<std::uint64_t> count{0};
  return ++count;
}

}  // namespace

// What a thread remembers of where it was noted, so that it is noted once and
// forgotten when it ends.
class BlockedCallers::ThreadNote {
 public:
  ~ThreadNote() {
    for (const auto& [number, callers] : noted_) {
      if (auto alive = callers.lock()) {
        alive->forget_thread(std::this_thread::get_id());
      }
    }
  }

  bool is_noted(std::uint64_t number) const {
    return std::any_of(noted_.begin(), noted_.end(),
                       [&](const auto& each) { return each.first == number; });
  }

  void add(BlockedCallers& callers) {
    std::erase_if(noted_,
                  [](const auto& each) { return each.second.expired(); });
    noted_.emplace_back(callers.number_, callers.weak_from_this());
  }

 private:
  // Few: a process has one World, but for tests.
  std::vector<std::pair<std::uint64_t, std::weak_ptr<BlockedCallers>>> noted_;
};

BlockedCallers::Scope::Scope(BlockedCallers* callers, const Wait& wait)
    : callers_(callers),
      wait_(wait),
      thread_(std::this_thread::get_id()),
      start_(Clock::now()) {
  if (!callers_) return;
  const std::lock_guard lock(callers_->mutex_);
  id_ = ++callers_->num_waits_;
  callers_->waits_.push_back(this);
}

BlockedCallers::Scope::~Scope() {
  if (!callers_) return;
  const std::lock_guard lock(callers_->mutex_);
  callers_->waits_.remove(this);
}

std::string BlockedCallers::Scope::reason() const {
  if (!callers_) return {};
  const std::lock_guard lock(callers_->mutex_);
  return reason_;
}

BlockedCallers::BlockedCallers() : number_(next_number()) {}

void BlockedCallers::note_caller() {
  thread_local ThreadNote note;
  if (note.is_noted(number_)) return;
  note.add(*this);
  const std::lock_guard lock(mutex_);
  threads_.insert(std::this_thread::get_id());
}

void BlockedCallers::forget_thread(std::thread::id thread) {
  const std::lock_guard lock(mutex_);
  threads_.erase(thread);
}

void BlockedCallers::add(int number, WatchedGroup* group) {
  const std::lock_guard lock(mutex_);
  groups_[number] = group;
}

void BlockedCallers::remove(int number) {
  const std::lock_guard lock(mutex_);
  groups_.erase(number);
}

bool BlockedCallers::is_blocked() const {
  const auto waits = [this](std::thread::id thread) {
    return std::any_of(waits_.begin(), waits_.end(), [&](const Scope* scope) {
      return scope->thread_ == thread;
    });
  };
  return !waits_.empty() &&
         std::all_of(threads_.begin(), threads_.end(), waits);
}

std::chrono::milliseconds BlockedCallers::blocked_for(
    Clock::time_point now) const {
  const std::lock_guard lock(mutex_);
  if (!is_blocked()) return std::chrono::milliseconds(0);
  Clock::time_point last = waits_.front()->start_;
  for (const Scope* scope : waits_) last = std::max(last, scope->start_);
  return std::chrono::duration_cast<std::chrono::milliseconds>(now - last);
}

RankStatus BlockedCallers::status(Clock::time_point now) const {
  const std::lock_guard lock(mutex_);
  RankStatus status;
  if (!is_blocked()) return status;
  for (const Scope* scope : waits_) {
    const Wait& wait = scope->wait_;
    const auto group = groups_.find(wait.group);
    if (group == groups_.end()) {
      status.waits.clear();
      return status;
    }
    RankWait made{.id = scope->id_, .group = wait.group};
    made.group_name = group->second->watched_name();
    made.duration = std::chrono::duration_cast<std::chrono::milliseconds>(
        now - scope->start_);
    if (wait.call != nullptr) {
      made.sequence = wait.call->sequence;
      made.what = describe(*wait.call);
      made.label = *wait.label;
    } else {
      made.peer = wait.peer;
      made.what = (*wait.missing)();
      made.label = group->second->label();
    }
    status.waits.push_back(std::move(made));
  }
  for (const auto& [number, group] : groups_) {
    status.num_entered[number] = group->num_entered();
  }
  return status;
}

BlockedCallers::Scope* BlockedCallers::find(std::uint64_t id) const {
  const auto found =
      std::find_if(waits_.begin(), waits_.end(),
                   [&](const Scope* scope) { return scope->id_ == id; });
  return found == waits_.end() ? nullptr : *found;
}

void BlockedCallers::condemn(std::uint64_t id, const std::string& reason) {
  const std::lock_guard lock(mutex_);
  Scope* scope = find(id);
  if (scope == nullptr) return;
  scope->reason_ = reason;
  const auto group = groups_.find(scope->wait_.group);
  if (group != groups_.end()) group->second->condemn(reason);
}

void BlockedCallers::abort(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  const Scope* scope = find(id);
  if (scope == nullptr) return;
  const auto group = groups_.find(scope->wait_.group);
  if (group != groups_.end()) group->second->abort();
}

}  // namespace nfold
