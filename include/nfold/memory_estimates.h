// File: nfold/memory_estimates.h
//
// How much memory parameters, gradients and optimizer state of a model take
// under ZeRO, by DeepSpeed's rules of thumb: mixed precision and Adam, with the
// states of a node in its CPU memory if they are offloaded. To compare
// machines before there is a model; an Engine counts its own bytes exactly
// (Engine::memory, Engine::unsharded_memory).
//
//   const auto need = nfold::estimate_zero2_model_states_mem_needs(
//       {.num_params = 1'000'000'000, .gpus_per_node = 8});
//   // need.cpu_bytes 48e9, need.gpu_bytes 2e9
//
// cpu_bytes is for a whole node, gpu_bytes for each device. Activations are not
// in it. Pure functions.
//
// Source: the functions of these names in DeepSpeed.
#pragma once

#include <cstdint>

namespace nfold {

struct MemoryEstimateInput {
  std::int64_t num_params = 0;
  // The most parameters that are whole at a time; stage 3 only.
  std::int64_t largest_layer_params = 0;
  std::int64_t gpus_per_node = 1;
  std::int64_t num_nodes = 1;
  bool is_optimizer_offloaded = true;
  bool are_params_offloaded = true;  // stage 3, with the optimizer only
  // The model is built straight into shards (nfold::init); stage 3 only.
  bool is_built_sharded = true;
  // For what comes on top of the states in CPU memory.
  double buffer_factor = 1.5;
};

struct MemoryEstimate {
  std::int64_t cpu_bytes = 0;
  std::int64_t gpu_bytes = 0;
  std::int64_t largest_layer_bytes = 0;  // stage 3; part of gpu_bytes

  bool operator==(const MemoryEstimate&) const = default;
};

// Both raise c10::ValueError for negative numbers of parameters or fewer than
// one device or node.
MemoryEstimate estimate_zero2_model_states_mem_needs(
    const MemoryEstimateInput& input);
MemoryEstimate estimate_zero3_model_states_mem_needs(
    const MemoryEstimateInput& input);

}  // namespace nfold
