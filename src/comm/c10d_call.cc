#include "comm/c10d_call.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <utility>

#include "comm/c10d_work.h"

namespace nfold {

std::string C10dCall::where() const {
  return c10::str("[rank ", group_.global_rank(), "] group '", group_.name(),
                  "': ", title_, ": ");
}

void C10dCall::dense(const Tensors& tensors) const {
  for (const auto& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.defined(), where(), "a tensor is undefined");
    TORCH_CHECK_VALUE(
        tensor.device().is_cpu() && tensor.layout() == at::kStrided, where(),
        "expected dense CPU tensors but found a ", tensor.layout(), " one on ",
        tensor.device());
  }
}

const at::Tensor& C10dCall::only(const Tensors& tensors) const {
  TORCH_CHECK_VALUE(tensors.size() == 1, where(),
                    "expected one tensor but found ", tensors.size());
  dense(tensors);
  return tensors.front();
}

const Tensors& C10dCall::for_each_rank(const TensorLists& lists,
                                       const at::Tensor& like) const {
  TORCH_CHECK_VALUE(lists.size() == 1, where(),
                    "expected one list of tensors but found ", lists.size());
  const Tensors& list = lists.front();
  TORCH_CHECK_VALUE(list.size() == static_cast<std::size_t>(group_.size()),
                    where(), "expected a list of one tensor for each of ",
                    group_.size(), " ranks but found ", list.size());
  dense(list);
  same_dtype(list, like);
  for (const auto& tensor : list) {
    TORCH_CHECK_VALUE(tensor.numel() == like.numel(), where(), "expected ",
                      like.numel(), " elements for each rank but found ",
                      tensor.numel());
  }
  return list;
}

void C10dCall::no_list(const TensorLists& lists, std::int64_t root) const {
  TORCH_CHECK_VALUE(lists.empty(), where(), "expected lists only on rank ",
                    root, " of the group, the root");
}

void C10dCall::same_dtype(const Tensors& tensors,
                          const at::Tensor& like) const {
  for (const auto& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.scalar_type() == like.scalar_type(), where(),
                      "expected tensors of one dtype but found ",
                      like.scalar_type(), " and ", tensor.scalar_type());
  }
}

void C10dCall::in_pairs(const Tensors& outputs, const Tensors& inputs) const {
  TORCH_CHECK_VALUE(outputs.size() == inputs.size(), where(), "found ",
                    outputs.size(), " outputs but ", inputs.size(), " inputs");
  dense(outputs);
  dense(inputs);
}

int C10dCall::root(std::int64_t rank) const {
  TORCH_CHECK_VALUE(rank >= 0 && rank < group_.size(), where(),
                    "expected a root of the group, 0 to ", group_.size() - 1,
                    ", but found ", rank);
  return static_cast<int>(rank);
}

C10dReduction C10dCall::reduction(const c10d::ReduceOp& op,
                                  const at::Tensor& like) const {
  try {
    return {op, like.scalar_type(), group_.size()};
  } catch (const c10::NotImplementedError& error) {
    C10_THROW_ERROR(NotImplementedError, where() + error.msg());
  }
}

WorkPointer C10dCall::follows(Pending pending, Tensors outputs,
                              std::function<void()> finish) const {
  auto work = c10::make_intrusive<GroupWork>(group_.rank(), type_, title_,
                                             std::move(outputs));
  follow(work, std::move(pending), std::move(finish));
  return work;
}

Tensors C10dCall::rows_by_rank(const at::Tensor& tensor,
                               std::vector<std::int64_t> counts) const {
  const int num_ranks = group_.size();
  const std::int64_t num_rows = tensor.dim() == 0 ? 1 : tensor.size(0);
  if (counts.empty()) {
    TORCH_CHECK_VALUE(num_rows % num_ranks == 0, where(),
                      "expected a "
                      "multiple of ",
                      num_ranks,
                      " rows, or split sizes, but "
                      "found ",
                      num_rows, " rows");
    counts.assign(static_cast<std::size_t>(num_ranks), num_rows / num_ranks);
  }
  std::int64_t sum = 0;
  for (const auto count : counts) {
    TORCH_CHECK_VALUE(count >= 0, where(), "a split size is ", count);
    sum += count;
  }
  TORCH_CHECK_VALUE(
      counts.size() == static_cast<std::size_t>(num_ranks) && sum == num_rows,
      where(), "expected a split size for each of ", num_ranks,
      " ranks, with a sum of ", num_rows, ", but found ", counts.size(),
      " with a sum of ", sum);
  const auto flat = tensor.view(-1);
  const std::int64_t row_numel = num_rows == 0 ? 0 : flat.numel() / num_rows;
  Tensors parts;
  std::int64_t begin = 0;
  for (const auto count : counts) {
    parts.push_back(flat.narrow(0, begin * row_numel, count * row_numel));
    begin += count;
  }
  return parts;
}

bool is_in_place(const at::Tensor& values, const at::Tensor& tensor) {
  return values.const_data_ptr() == tensor.const_data_ptr();
}

at::Tensor contiguous_or_new(const at::Tensor& tensor) {
  return tensor.is_contiguous() ? tensor
                                : at::empty(tensor.sizes(), tensor.options());
}

at::Tensor flattened(const Tensors& tensors) {
  Tensors flats;
  flats.reserve(tensors.size());
  for (const auto& tensor : tensors) flats.push_back(tensor.reshape(-1));
  return at::cat(flats);
}

void copy_in_turn(const Tensors& to, const at::Tensor& flat) {
  std::int64_t begin = 0;
  for (const auto& tensor : to) {
    const auto part = flat.narrow(0, begin, tensor.numel());
    tensor.copy_(part.view(tensor.sizes()));
    begin += tensor.numel();
  }
}

std::function<void()> landed(std::vector<Landing> landings) {
  std::erase_if(landings, [](const Landing& landing) {
    return is_in_place(landing.to, landing.from);
  });
  if (landings.empty()) return {};
  return [landings = std::move(landings)] {
    for (const auto& [to, from] : landings) to.copy_(from.view(to.sizes()));
  };
}

}  // namespace nfold
