// File: c10d_call.h
//
// One call of torch's interface to a group: checks of the arguments, with
// texts that name rank, group and function, and the work that stands for it.
//
//   const C10dCall call(group, OpType::ALLGATHER, "nfold:allgather");
//   const auto& input = call.only(inputs);
//   const auto& list = call.for_each_rank(outputs, input);
//   ...
//   return call.follows(all_gather(group, flat, input), list,
//                       [list, flat] { copy_in_turn(list, flat); });
//
// All checks raise c10::ValueError. Callable from any thread.
#pragma once

#include <ATen/core/TensorBody.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <functional>
#include <string>
#include <torch/csrc/distributed/c10d/Types.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "comm/c10d_reduction.h"
#include "nfold/collectives.h"

namespace nfold {

using Tensors = std::vector<at::Tensor>;
using TensorLists = std::vector<Tensors>;
using WorkPointer = c10::intrusive_ptr<c10d::Work>;

class C10dCall {
 public:
  // `title` is a literal.
  C10dCall(const Group& group, c10d::OpType type, const char* title)
      : group_(group), type_(type), title_(title) {}

  // "[rank 1] group 'ddp': nfold:allreduce: ".
  std::string where() const;

  void dense(const Tensors& tensors) const;
  void same_dtype(const Tensors& tensors, const at::Tensor& like) const;
  // Dense, and as many of both.
  void in_pairs(const Tensors& outputs, const Tensors& inputs) const;
  // The only one, dense.
  const at::Tensor& only(const Tensors& tensors) const;
  // The only list: a tensor for each rank, with as many elements of the same
  // dtype as the given one.
  const Tensors& for_each_rank(const TensorLists& lists,
                               const at::Tensor& like) const;
  // Of a rank that is not the root.
  void no_list(const TensorLists& lists, std::int64_t root) const;
  // A rank of the group.
  int root(std::int64_t rank) const;
  // For each rank its rows of a contiguous tensor, as flat tensors. `counts`
  // says how many; empty for equal parts.
  Tensors rows_by_rank(const at::Tensor& tensor,
                       std::vector<std::int64_t> counts) const;
  // Raises c10::NotImplementedError.
  C10dReduction reduction(const c10d::ReduceOp& op,
                          const at::Tensor& like) const;

  // A work that is done when the collective and then `finish` are.
  WorkPointer follows(Pending pending, Tensors outputs,
                      std::function<void()> finish = {}) const;

 private:
  const Group& group_;
  const c10d::OpType type_;
  const char* const title_;
};

bool is_in_place(const at::Tensor& values, const at::Tensor& tensor);
// For results: the tensor where it is contiguous, else one like it that is.
at::Tensor contiguous_or_new(const at::Tensor& tensor);
at::Tensor flattened(const Tensors& tensors);
// The next elements of the flat tensor for each.
void copy_in_turn(const Tensors& to, const at::Tensor& flat);

// What is to be copied where once the collective is done.
struct Landing {
  at::Tensor to;
  at::Tensor from;
};
// Empty where nothing is: both are in one place.
std::function<void()> landed(std::vector<Landing> landings);

}  // namespace nfold
