// File: sharded_model.h
//
// A module's parameters as units: what the engine builds first and
// everything else works on.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "nfold/config.h"
#include "nfold/mesh.h"
#include "param/sharded_unit.h"

namespace nfold {

// Where a parameter lives.
struct ParamAddress {
  std::size_t unit = 0;   // index in ShardedModel::units
  std::size_t param = 0;  // index in the unit
};

// Converts the module's buffers as the configuration says.
void convert_buffers(torch::nn::Module& module, const Config& config);
// Says that the ranks built different values and rank 0's are taken.
void warn_of_differing(const std::vector<std::string>& names);

class ShardedModel {
 public:
  // Makes all ranks agree on the model (see model_agreement.h), then moves
  // its parameters into units. Collective.
  ShardedModel(torch::nn::Module& module, Mesh& mesh, const Config& config);
  // Of parameters whose values come later, see InitialValues::kZero.
  ShardedModel(std::vector<ParamState> params, const Mesh& mesh,
               const Config& config, InitialValues initial);

  // Raises c10::ValueError if this is not what the configuration would make of
  // the module on these ranks.
  void check_made_for(const torch::nn::Module& module, const Mesh& mesh,
                      const Config& config) const;

  const std::vector<std::unique_ptr<ShardedUnit>>& units() const {
    return units_;
  }
  std::vector<ShardedUnit*> all() const;
  // Units with an optimizer; the others are frozen.
  const std::vector<ShardedUnit*>& trained() const { return trained_; }

  // Of a tensor of the module; raises c10::ValueError for any other.
  ParamAddress find(const at::Tensor& param) const;
  // Index of a unit within trained(); raises c10::ValueError if it is frozen.
  std::size_t trained_index(std::size_t unit) const;

  // Elements of all and of the trained parameters, without residue.
  std::int64_t numel() const { return numel_; }
  std::int64_t trained_numel() const { return trained_numel_; }

 private:
  std::vector<std::unique_ptr<ShardedUnit>> units_;
  std::vector<ShardedUnit*> trained_;
  std::int64_t numel_ = 0;
  std::int64_t trained_numel_ = 0;
};

}  // namespace nfold
