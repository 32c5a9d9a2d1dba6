#include "param/replay_plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>
#include <utility>

namespace nfold {
namespace {

constexpr std::size_t kNever = std::numeric_limits<std::size_t>::max();

// What becomes of a storage after one of its operators.
struct Touch {
  std::size_t storage = 0;
  bool is_changed = false;    // by this operator
  bool is_alive = false;      // its value matters afterwards
  std::size_t next = kNever;  // the next operator that has to do with it
};

// For each operator that has to run, its touches; the others are absent.
using Schedule = std::map<std::size_t, std::vector<Touch>>;

bool contains(const std::vector<std::size_t>& list, std::size_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// From the last operator to the first, for whether one matters depends on
// those after it.
Schedule schedule_of(const std::vector<OperatorAccess>& operators,
                     const ReplayRequest& request) {
  Schedule schedule;
  std::vector<bool> is_alive = request.is_wanted;
  std::vector<std::size_t> next(is_alive.size(), kNever);
  for (std::size_t i = operators.size(); i-- > 0;) {
    const auto& [inputs, outputs] = operators[i];
    const bool matters =
        request.must_run[i] ||
        std::any_of(outputs.begin(), outputs.end(),
                    [&](std::size_t storage) { return is_alive[storage]; });
    if (!matters) continue;
    auto& touches = schedule[i];
    const auto touch = [&](std::size_t storage) {
      touches.push_back({storage, contains(outputs, storage), is_alive[storage],
                         next[storage]});
    };
    for (std::size_t storage : outputs) touch(storage);
    for (std::size_t storage : inputs) {
      if (!contains(outputs, storage)) touch(storage);
    }
    for (std::size_t storage : outputs) is_alive[storage] = false;
    for (std::size_t storage : inputs) is_alive[storage] = true;
    for (const Touch& touched : touches) next[touched.storage] = i;
  }
  return schedule;
}

class Planner {
 public:
  Planner(const std::vector<OperatorAccess>& operators,
          const ReplayRequest& request)
      : operators_(operators),
        request_(request),
        is_finished_(request.is_wanted.size(), false) {}

  std::vector<ReplayStep> plan() {
    for (const auto& [index, touches] : schedule_of(operators_, request_)) {
      make_room(touches);
      for (std::size_t storage : operators_[index].inputs) load(storage);
      add(ReplayAction::kRun, index);
      for (const Touch& touch : touches) settle(touch);
    }
    for (std::size_t i = 0; i < is_finished_.size(); ++i) {
      if (request_.is_wanted[i] && !is_finished_[i]) {
        add(ReplayAction::kFinish, i);
      }
    }
    return std::move(steps_);
  }

 private:
  struct Present {
    bool is_stored = false;  // what was stored is still the value
    std::size_t next = kNever;
  };

  void add(ReplayAction action, std::size_t index) {
    steps_.push_back({action, index});
  }

  void load(std::size_t storage) {
    if (away_.erase(storage) == 0) return;
    add(ReplayAction::kLoad, storage);
    present_[storage].is_stored = true;
  }

  void settle(const Touch& touch) {
    Present& present = present_[touch.storage];
    if (touch.is_changed) present.is_stored = false;
    present.next = touch.next;
    if (touch.is_alive && touch.next != kNever) return;
    // Alive without a further operator: then it is wanted.
    const bool is_final = touch.is_alive;
    add(is_final && !present.is_stored ? ReplayAction::kFinish
                                       : ReplayAction::kDrop,
        touch.storage);
    if (is_final) is_finished_[touch.storage] = true;
    present_.erase(touch.storage);
  }

  // Before an operator: stores what waits beyond the bound.
  void make_room(const std::vector<Touch>& touches) {
    std::int64_t waiting_bytes = 0;
    std::vector<std::size_t> waiting;
    for (const auto& [storage, present] : present_) {
      const bool is_touched = std::any_of(
          touches.begin(), touches.end(),
          [&](const Touch& touch) { return touch.storage == storage; });
      if (is_touched || !request_.may_store[storage]) continue;
      waiting.push_back(storage);
      waiting_bytes += request_.nbytes[storage];
    }
    std::stable_sort(waiting.begin(), waiting.end(),
                     [&](std::size_t a, std::size_t b) {
                       return present_[a].next > present_[b].next;
                     });
    for (std::size_t storage : waiting) {
      if (waiting_bytes <= request_.max_waiting_bytes) break;
      waiting_bytes -= request_.nbytes[storage];
      add(present_[storage].is_stored ? ReplayAction::kDrop
                                      : ReplayAction::kStore,
          storage);
      present_.erase(storage);
      away_.insert(storage);
    }
  }

  const std::vector<OperatorAccess>& operators_;
  const ReplayRequest& request_;
  std::vector<ReplayStep> steps_;
  std::map<std::size_t, Present> present_;  // ordered: the same on all ranks
  std::set<std::size_t> away_;
  std::vector<bool> is_finished_;
};

}  // namespace

std::vector<ReplayStep> plan_replay(
    const std::vector<OperatorAccess>& operators,
    const ReplayRequest& request) {
  return Planner(operators, request).plan();
}

}  // namespace nfold
