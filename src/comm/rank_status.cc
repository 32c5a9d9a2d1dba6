#include "comm/rank_status.h"

#include <nlohmann/json.hpp>

namespace nfold {
namespace {

nlohmann::json json_of(const RankWait& wait) {
  return {{"id", wait.id},
          {"group", wait.group},
          {"group_name", wait.group_name},
          {"sequence", wait.sequence},
          {"peer", wait.peer},
          {"what", wait.what},
          {"label", wait.label},
          {"ms", wait.duration.count()}};
}

RankWait rank_wait_of(const nlohmann::json& json) {
  RankWait wait;
  json.at("id").get_to(wait.id);
  json.at("group").get_to(wait.group);
  json.at("group_name").get_to(wait.group_name);
  json.at("sequence").get_to(wait.sequence);
  json.at("peer").get_to(wait.peer);
  json.at("what").get_to(wait.what);
  json.at("label").get_to(wait.label);
  wait.duration = std::chrono::milliseconds(json.at("ms").get<std::int64_t>());
  return wait;
}

}  // namespace

std::string text_of(const RankStatus& status) {
  nlohmann::json waits = nlohmann::json::array();
  for (const RankWait& wait : status.waits) waits.push_back(json_of(wait));
  nlohmann::json entered = nlohmann::json::array();
  for (const auto& [group, count] : status.num_entered) {
    entered.push_back({group, count});
  }
  const nlohmann::json json = {{"rank", status.rank},
                               {"beat", status.beat},
                               {"waits", std::move(waits)},
                               {"entered", std::move(entered)}};
  // A user's label may hold any bytes.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

RankStatus rank_status_of(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  RankStatus status;
  json.at("rank").get_to(status.rank);
  json.at("beat").get_to(status.beat);
  for (const auto& wait : json.at("waits")) {
    status.waits.push_back(rank_wait_of(wait));
  }
  for (const auto& entry : json.at("entered")) {
    status.num_entered[entry.at(0).get<int>()] =
        entry.at(1).get<std::uint64_t>();
  }
  return status;
}

}  // namespace nfold
