// File: nfold/moe.h
//
// A mixture of experts in place of a layer: a gate sends each token to one or
// two of many experts, which ranks share out between them. Parameters grow
// with the number of experts, computation per token does not.
//
//   nfold::MixtureOfExperts mixture(
//       {.hidden_size = 512, .num_experts = 8, .top_k = 2,
//        .expert_group = &mesh.expert(4)},
//       [] { return Mlp(512, 2048); });
//   auto [y, aux_loss, counts, num_dropped] = mixture->forward(x);
//   auto loss = task_loss(y) + 0.01 * aux_loss;
//
// With an expert group of N ranks each holds experts / N of the experts, the
// first rank the first ones, and tokens travel: two all-to-alls forward, two
// backward, and an all-reduce of one number, over which ranks agree on how
// much room to send. Every rank of the group must call forward equally often,
// and backward through its output; the number of tokens may differ, and be 0.
// The result does not depend on the size of the group up to rounding: each
// rank routes its own tokens, and dropping is decided there.
//
// Every local expert runs in every forward pass, with tokens or without, so
// that all ranks use the same parameters.
//
// An Engine keeps the state of experts over the ranks that hold the same ones,
// since the layer is a PlacedModule. Its parameters are named gate.weight,
// experts.I.*, and with a residual mlp.* and coefficient.*. I counts over all
// experts, whoever holds them.
//
// Not thread-safe (modules are not).
//
// Source: GShard, DeepSpeed-MoE. See docs/mixture_of_experts.md.
#pragma once

#include <ATen/core/TensorBody.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nfold/group.h"
#include "nfold/placement.h"

namespace nfold {

// Noise while training, so that more experts are tried.
enum class NoisyGate : std::uint8_t {
  kNone,
  kJitter,   // the gate's input is multiplied by numbers around 1
  kRSample,  // top-1 only: the expert is drawn, by Gumbel noise on the logits
};

struct MixtureOptions {
  std::int64_t hidden_size = 0;
  std::int64_t num_experts = 1;
  int top_k = 1;  // experts per token, 1 or 2
  // Room for tokens of one rank in one expert, as a multiple of
  // top_k * tokens / experts. What does not fit is dropped: it adds nothing to
  // the output.
  double capacity_factor = 1;
  double eval_capacity_factor = 1;
  std::int64_t min_capacity = 4;
  // false: there is room for all.
  bool drop_tokens = true;
  NoisyGate noisy_gate = NoisyGate::kNone;
  double jitter = 0.01;  // of kJitter: numbers from 1 - jitter to 1 + jitter
  // Top-1, while training: who fits is decided by lot, not by the position.
  bool is_selection_random = false;
  // Top-2, while training: the second expert is drawn, by Gumbel noise.
  bool is_second_sampled = false;
  // A dense layer, made like an expert, beside the experts; a learned softmax
  // weighs the two (Residual-MoE of DeepSpeed-MoE).
  bool has_residual = false;
  // Ranks that share out the experts. Null: all experts are here. Must outlive
  // the module.
  Group* expert_group = nullptr;
};

// A module whose forward maps [rows, hidden] to [rows, hidden]. Made from a
// ModuleHolder or a std::shared_ptr.
struct Expert {
  template <typename ModuleImpl>
  Expert(const torch::nn::ModuleHolder<ModuleImpl>& holder)  // NOLINT
      : Expert(holder.ptr()) {}
  template <typename ModuleImpl>
  Expert(std::shared_ptr<ModuleImpl> made)  // NOLINT(google-explicit-*)
      : module(made), forward([made](const at::Tensor& x) -> at::Tensor {
          return made->forward(x);
        }) {}

  std::shared_ptr<torch::nn::Module> module;
  std::function<at::Tensor(const at::Tensor&)> forward;
};
using ExpertFactory = std::function<Expert()>;

struct MixtureOutput {
  at::Tensor output;    // shape and dtype of the input
  at::Tensor aux_loss;  // fp32, 0-dimensional; of this rank's tokens
  // int64 [experts]: this rank's tokens that chose each, dropped ones too.
  at::Tensor counts{};
  std::int64_t num_dropped = 0;  // this rank's choices without room
};

class MixtureOfExpertsImpl : public torch::nn::Module, public PlacedModule {
 public:
  // Calls the factory for every expert in order, on every rank, and keeps the
  // local ones, so that all ranks draw the same random numbers and the
  // experts' values do not depend on the group. With a residual it is called
  // once more.
  //
  // Raises c10::ValueError for top_k other than 1 and 2, experts fewer than
  // top_k or not divisible by the ranks of the group, and factors out of range.
  MixtureOfExpertsImpl(const MixtureOptions& options,
                       const ExpertFactory& make_expert);

  // x [..., hidden_size], floating-point. Collective over the expert group.
  // Raises c10::ValueError for another last dimension, before anything is
  // sent, and for experts that change the shape.
  MixtureOutput forward(const at::Tensor& x);

  Placement placement_of(const std::string& param) const override;
  const MixtureOptions& options() const { return options_; }

 private:
  int num_ranks() const;
  at::Tensor logits_of(const at::Tensor& tokens);
  // sent [experts * rows, hidden], grouped by expert -> what they made of it.
  at::Tensor run_experts(const at::Tensor& sent, std::int64_t rows);
  at::Tensor with_residual(const at::Tensor& tokens, const at::Tensor& output);

  const MixtureOptions options_;
  torch::nn::Linear gate_{nullptr};
  std::vector<Expert> experts_;   // the local ones
  std::vector<Expert> residual_;  // one or none
  torch::nn::Linear coefficient_{nullptr};
};
TORCH_MODULE(MixtureOfExperts);

}  // namespace nfold
