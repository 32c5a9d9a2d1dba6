// File: unit_policy.h
//
// Which parameters form a unit, that is, are communicated together. Pure.
//
// One unit for each element of the outermost ModuleList-like container (the
// blocks of a transformer); what is left goes, in order of registration, to
// units of bounded size. All parameters of a unit share dtype, requires_grad
// and placement, so an element with frozen parameters makes two units.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "nfold/placement.h"

namespace nfold {

struct UnitCandidate {
  std::string name;  // dotted path of the parameter in its module
  std::int64_t numel = 0;
  c10::ScalarType dtype = c10::ScalarType::Float;
  bool requires_grad = true;
  Placement placement = {};
};

struct UnitPlan {
  std::string name;                 // "transformer.h.3", "wte ... ln_f"
  std::vector<std::size_t> params;  // indices of candidates, ascending
};

struct UnitPolicyOptions {
  // Bound of a unit made of parameters outside of any container. A larger
  // single parameter is a unit by itself.
  std::int64_t max_rest_numel = std::int64_t{1} << 24;
  // Elements of a container smaller than this share a unit with their
  // neighbours: a Sequential of small layers is not worth a unit per layer.
  std::int64_t min_element_numel = std::int64_t{1} << 16;
};

// Bounds for a model of this many elements: those above, or in a small model
// a share of the whole, so that it is made of units like a large one.
UnitPolicyOptions unit_policy_options(std::int64_t model_numel);

// Units in the order of their first parameter. Every candidate is in exactly
// one unit.
std::vector<UnitPlan> plan_units(const std::vector<UnitCandidate>& candidates,
                                 const UnitPolicyOptions& options = {});

// The path up to the first component that is a number: "h.3.mlp.weight" ->
// "h.3"; empty if there is none.
std::string container_element_of(const std::string& param_name);

}  // namespace nfold
