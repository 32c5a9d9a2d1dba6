// File: nfold/gather.h
//
// Whole parameters for a while: to read them, or to change them on all ranks.
//
//   {
//     nfold::GatheredParameters scope(model->wte->weight,
//                                     {.modifier_rank = 0});
//     at::NoGradGuard no_grad;
//     if (world.rank() == 0) model->wte->weight.normal_(0, 0.02);
//   }                            // all ranks hold rank 0's values now
//
// Operators gather what they use by themselves; a scope is for raw access
// (data_ptr), for writing, and for keeping a parameter whole over a stretch
// of code. It works at every stage, with parameters of any units of one
// engine; tensors that are no engine's are skipped, as are repetitions. At
// stage 3 it takes the memory of all units that the parameters belong to,
// whatever the live budget says.
//
// Collective: every rank of the engine's group must open and close the same
// scopes in the same order, the same forward passes in between. A scope is
// closed by its end, also when an exception passes through.
//
// It works between nfold::init and the engine too, and inside of the function
// that init calls: there it gives the parameters memory until init returns.
//
// Without modifier_rank parameters may not be changed: a change by operators
// on any rank is undone and is a c10::ValueError on all of them that names
// parameter and rank. (Where every rank changed a parameter that is always
// whole, as at stages 0 to 2, nobody has the old values and the change stays.)
// With it, the values of that rank become those of all, master weights
// included; what other ranks wrote is lost. Other parameters of the same units
// may not be changed either way.
//
// Ranks are counted in the group over which parameters are sharded; for experts
// that is the one of the ranks that hold the same experts.
//
// Raises c10::ValueError for a parameter of a unit that another open scope
// holds, a modifier_rank that is not in the group, a view of a parameter,
// parameters of two engines. While a scope is open, Engine::step,
// Engine::unshard_model and safe_set_*_fp32_param raise.
//
// The form is that of DeepSpeed's GatheredParameters.
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>

#include <memory>
#include <optional>
#include <vector>

namespace nfold {

struct GatherOptions {
  // Position in the engine's group.
  std::optional<int> modifier_rank{};
  // false: the scope does nothing.
  bool enabled = true;
};

class GatheredParameters {
 public:
  explicit GatheredParameters(std::vector<at::Tensor> params,
                              GatherOptions options = {});
  explicit GatheredParameters(const at::Tensor& param,
                              GatherOptions options = {})
      : GatheredParameters(std::vector<at::Tensor>{param}, options) {}
  // close(), but an error is only logged while another exception passes.
  ~GatheredParameters() noexcept(false);
  GatheredParameters(const GatheredParameters&) = delete;
  GatheredParameters& operator=(const GatheredParameters&) = delete;

  // Ends the scope early. Idempotent.
  void close();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;  // null: nothing to do
};

// For programs written for DeepSpeed, where a module has to announce that it
// uses a parameter of another one. Here every use is noticed, so this checks
// its arguments and does nothing. Raises c10::ValueError if `param` is not a
// parameter. Not collective.
void register_external_parameter(const torch::nn::Module& module,
                                 const at::Tensor& param);
void unregister_external_parameter(const torch::nn::Module& module,
                                   const at::Tensor& param);

}  // namespace nfold
