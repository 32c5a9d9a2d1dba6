// File: nfold/placement.h
//
// Which parameters are not copies of the same values on every rank, said by
// the module that holds them. The engine shards and reduces each over the
// ranks that do hold the same, and counts each once in the gradient norm.
//
//   class Experts : public torch::nn::Module, public nfold::PlacedModule {
//     nfold::Placement placement_of(const std::string&) const override {
//       return {.expert_size = 4};
//     }
//   };
//
// A module that says nothing has replicated parameters. What modules above a
// parameter say adds up: a tensor-parallel layer inside of an expert is both.
#pragma once

#include <algorithm>
#include <string>

namespace nfold {

struct Placement {
  // Ranks that share out the experts of which the parameter is part: the size
  // of an expert group of the mesh. 1: every rank of the data group has it.
  int expert_size = 1;
  // Each rank of a tensor group has a part of its own.
  bool is_tensor_split = false;

  bool operator==(const Placement&) const = default;
};

// What two modules above one parameter say together.
inline Placement combined(const Placement& a, const Placement& b) {
  return {.expert_size = std::max(a.expert_size, b.expert_size),
          .is_tensor_split = a.is_tensor_split || b.is_tensor_split};
}

// Implemented by a torch::nn::Module beside it.
class PlacedModule {
 public:
  virtual ~PlacedModule() = default;
  // Of a parameter of this module or of one below it. param: dotted path from
  // this module, as named_parameters() has it ("weight", "0.fc.bias").
  virtual Placement placement_of(const std::string& param) const = 0;
};

}  // namespace nfold
