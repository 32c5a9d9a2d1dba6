#include "comm/combine.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>

#include "kernels/sum_tree.h"

namespace nfold {
namespace {

at::Tensor tensor_over(const std::byte* data, c10::ScalarType dtype,
                       std::int64_t num_bytes) {
  const auto element_bytes = static_cast<std::int64_t>(c10::elementSize(dtype));
  return at::from_blob(const_cast<std::byte*>(data),
                       {num_bytes / element_bytes}, dtype);
}

}  // namespace

void combine(const CollectiveCall& call, c10::ScalarType dtype,
             std::byte* output, const std::vector<const std::byte*>& by_rank,
             std::int64_t num_bytes, Scratch& scratch, kernels::Stores stores) {
  if (std::all_of(by_rank.begin(), by_rank.end(),
                  [](const std::byte* data) { return data == nullptr; })) {
    std::memset(output, 0, static_cast<std::size_t>(num_bytes));
    return;
  }
  std::vector<at::Tensor> inputs;
  inputs.reserve(by_rank.size());
  for (const std::byte* data : by_rank) {
    if (data == nullptr) {
      data = scratch.zeros(static_cast<std::size_t>(num_bytes));
    }
    inputs.push_back(tensor_over(data, dtype, num_bytes));
  }
  const at::Tensor result = tensor_over(output, dtype, num_bytes);
  switch (call.op) {
    case ReduceOp::kSum:
      kernels::sum_tree(result, inputs, stores);
      break;
    case ReduceOp::kMax:
      kernels::max_of(result, inputs, stores);
      break;
  }
}

}  // namespace nfold
