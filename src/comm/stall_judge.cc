#include "comm/stall_judge.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "comm/wait_graph.h"

namespace nfold {

std::string text_of(const StallVerdict& verdict) {
  const nlohmann::json json = {{"waits", verdict.waits},
                               {"text", verdict.text}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

StallVerdict stall_verdict_of(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  StallVerdict verdict;
  json.at("waits").get_to(verdict.waits);
  json.at("text").get_to(verdict.text);
  return verdict;
}

std::optional<StallVerdict> StallJudge::look(
    const std::vector<RankStatus>& statuses, Clock::time_point now) {
  std::map<int, const RankStatus*> by_rank;
  for (const RankStatus& status : statuses) {
    by_rank.emplace(status.rank, &status);
  }
  const auto stuck = find_stuck(statuses);
  std::map<int, Seen> seen;
  std::vector<RankStatus> certain;
  StallVerdict verdict;
  bool is_new = false;
  for (const StuckRank& each : stuck) {
    const RankStatus& status = *by_rank.at(each.rank);
    Seen current{.waits = {}, .beat = status.beat, .time = now};
    for (const RankWait& wait : status.waits) {
      current.waits.insert(wait.id);
      verdict.waits.emplace_back(each.rank, wait.id);
      is_new = is_new || !judged_.contains(verdict.waits.back());
    }
    const auto before = seen_.find(each.rank);
    if (before != seen_.end() && before->second.waits == current.waits) {
      current = before->second;
    }
    if (now - current.time >= apart_ && status.beat > current.beat) {
      certain.push_back(status);
    }
    seen.emplace(each.rank, std::move(current));
  }
  seen_ = std::move(seen);
  if (!is_new || find_stuck(certain).empty()) return std::nullopt;
  judged_.insert(verdict.waits.begin(), verdict.waits.end());
  verdict.text = describe(stuck);
  return verdict;
}

}  // namespace nfold
