#include "param/unit_policy.h"

#include <algorithm>
#include <map>
#include <tuple>

namespace nfold {
namespace {

bool is_number(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return c >= '0' && c <= '9';
  });
}

// What must be equal within a unit.
using Kind = std::tuple<c10::ScalarType, bool, int, bool>;

Kind kind_of(const UnitCandidate& candidate) {
  return {candidate.dtype, candidate.requires_grad,
          candidate.placement.expert_size, candidate.placement.is_tensor_split};
}

// A unit that still takes parameters.
struct OpenUnit {
  std::size_t plan = 0;
  std::int64_t numel = 0;
};

}  // namespace

std::string container_element_of(const std::string& param_name) {
  std::size_t begin = 0;
  while (begin < param_name.size()) {
    const auto end = param_name.find('.', begin);
    // The last component is the parameter itself, never a container.
    if (end == std::string::npos) return "";
    if (is_number(param_name.substr(begin, end - begin))) {
      return param_name.substr(0, end);
    }
    begin = end + 1;
  }
  return "";
}

UnitPolicyOptions unit_policy_options(std::int64_t model_numel) {
  constexpr std::int64_t kRestShare = 4;
  constexpr std::int64_t kElementShare = 64;
  UnitPolicyOptions options;
  options.max_rest_numel =
      std::min(options.max_rest_numel, model_numel / kRestShare);
  options.min_element_numel =
      std::min(options.min_element_numel, model_numel / kElementShare);
  return options;
}

std::vector<UnitPlan> plan_units(const std::vector<UnitCandidate>& candidates,
                                 const UnitPolicyOptions& options) {
  std::map<std::string, std::int64_t> element_numel;
  for (const auto& candidate : candidates) {
    element_numel[container_element_of(candidate.name)] += candidate.numel;
  }

  std::vector<UnitPlan> plans;
  std::map<std::pair<Kind, std::string>, OpenUnit> open_elements;
  std::map<Kind, OpenUnit> open_rest;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    const auto& candidate = candidates[i];
    const auto kind = kind_of(candidate);
    const auto element = container_element_of(candidate.name);
    const auto start = [&](const std::string& name) {
      plans.push_back({name, {}});
      return OpenUnit{plans.size() - 1, 0};
    };
    OpenUnit* unit = nullptr;
    if (!element.empty() &&
        element_numel[element] >= options.min_element_numel) {
      auto found = open_elements.find({kind, element});
      if (found == open_elements.end()) {
        found = open_elements.emplace(std::pair{kind, element}, start(element))
                    .first;
      }
      unit = &found->second;
    } else {
      auto found = open_rest.find(kind);
      if (found == open_rest.end()) {
        found = open_rest.emplace(kind, start(candidate.name)).first;
      } else if (found->second.numel > 0 &&
                 found->second.numel + candidate.numel >
                     options.max_rest_numel) {
        found->second = start(candidate.name);
      }
      unit = &found->second;
    }
    plans[unit->plan].params.push_back(i);
    unit->numel += candidate.numel;
  }

  // A unit of unrelated parameters is named for its first and last, frozen
  // ones say so.
  for (auto& plan : plans) {
    const auto& last = candidates[plan.params.back()].name;
    if (plan.params.size() > 1 &&
        plan.name == candidates[plan.params.front()].name) {
      plan.name += " ... " + last;
    }
    if (!candidates[plan.params.front()].requires_grad) {
      plan.name += " (frozen)";
    }
  }
  return plans;
}

}  // namespace nfold
