#include "nfold/memory_estimates.h"

#include <algorithm>

#include "nfold/errors.h"

namespace nfold {
namespace {

// Bytes of a parameter: its 16-bit value; then gradients (2 and 4 bytes),
// master weights (4) and two optimizer states (8); fp32 values before they are
// sharded.
constexpr std::int64_t kParamBytes = 2;
constexpr std::int64_t kStateBytes = 18;
constexpr std::int64_t kOffloadedStateBytes = 16;
constexpr std::int64_t kInitialBytes = 4;

void check_input(const MemoryEstimateInput& input) {
  TORCH_CHECK_VALUE(input.num_params >= 0 && input.largest_layer_params >= 0,
                    "memory estimate: expected numbers of parameters that are "
                    "not negative but found ",
                    input.num_params, " and ", input.largest_layer_params);
  TORCH_CHECK_VALUE(input.gpus_per_node >= 1 && input.num_nodes >= 1,
                    "memory estimate: expected at least one device and node "
                    "but found ",
                    input.gpus_per_node, " and ", input.num_nodes);
}

std::int64_t whole_bytes(double bytes) {
  return static_cast<std::int64_t>(bytes);
}

// Of a node that builds the whole model in each of its processes.
double initial_bytes(const MemoryEstimateInput& input, double num_params) {
  return num_params * kInitialBytes * input.gpus_per_node;
}

}  // namespace

MemoryEstimate estimate_zero2_model_states_mem_needs(
    const MemoryEstimateInput& input) {
  check_input(input);
  const auto num_gpus = input.gpus_per_node * input.num_nodes;
  const auto params = static_cast<double>(input.num_params);
  MemoryEstimate estimate;
  estimate.gpu_bytes = kParamBytes * input.num_params;
  if (input.is_optimizer_offloaded) {
    const auto per_param =
        std::max(kInitialBytes * num_gpus, kOffloadedStateBytes);
    estimate.cpu_bytes = whole_bytes(params * per_param * input.buffer_factor);
  } else {
    estimate.gpu_bytes += kStateBytes * input.num_params / num_gpus;
    estimate.cpu_bytes =
        whole_bytes(initial_bytes(input, params) * input.buffer_factor);
  }
  return estimate;
}

MemoryEstimate estimate_zero3_model_states_mem_needs(
    const MemoryEstimateInput& input) {
  check_input(input);
  const auto num_gpus = input.gpus_per_node * input.num_nodes;
  const auto params = static_cast<double>(input.num_params);
  const auto layer_bytes = kInitialBytes * input.largest_layer_params;
  MemoryEstimate estimate{.gpu_bytes = layer_bytes,
                          .largest_layer_bytes = layer_bytes};
  // Of a node's share of the states.
  double cpu_bytes = 0;
  if (!input.is_optimizer_offloaded) {
    estimate.gpu_bytes += kStateBytes * input.num_params / num_gpus;
  } else if (input.are_params_offloaded) {
    cpu_bytes = params * kStateBytes / input.num_nodes;
  } else {
    estimate.gpu_bytes += kParamBytes * input.num_params / num_gpus;
    cpu_bytes = params * kOffloadedStateBytes / input.num_nodes;
  }
  // While it is built, the model is whole in every process, or one layer is.
  if (!input.is_built_sharded) {
    cpu_bytes = std::max(cpu_bytes, initial_bytes(input, params));
  } else if (!input.is_optimizer_offloaded) {
    cpu_bytes =
        initial_bytes(input, static_cast<double>(input.largest_layer_params));
  }
  estimate.cpu_bytes = whole_bytes(cpu_bytes * input.buffer_factor);
  return estimate;
}

}  // namespace nfold
