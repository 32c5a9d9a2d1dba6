#include "nfold/differentiable_collectives.h"

#include <ATen/Functions.h>
#include <c10/core/WrapDimMinimal.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

#include "nfold/collectives.h"
#include "parallel/lone_rank.h"

namespace nfold {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// A graph node keeps plain values only. Groups outlive graphs, see the header.
void keep_group(AutogradContext* context, Group* group) {
  context->saved_data["group"] = reinterpret_cast<std::int64_t>(group);
}

Group* kept_group(AutogradContext* context) {
  return reinterpret_cast<Group*>(context->saved_data["group"].toInt());
}

// The size of one of as many equal chunks of a dimension as there are ranks.
std::int64_t chunk_size(const Group& group, const char* function,
                        const at::Tensor& input, std::int64_t dim) {
  const std::int64_t size = input.size(dim);
  TORCH_CHECK_VALUE(size % group.size() == 0, "[rank ", group.global_rank(),
                    "] ", function, ": dimension ", dim, " of ", input.sizes(),
                    " has ", size, " elements, which do not divide by the ",
                    group.size(), " ranks of \"", group.name(),
                    "\". Pad it, or use a group whose size divides it.");
  return size / group.size();
}

// [N, ...], one part per rank -> the parts joined along `dim`.
at::Tensor joined(const at::Tensor& parts, std::int64_t dim) {
  return parts.movedim(0, dim).flatten(dim, dim + 1);
}

at::Tensor sum_over(Group& group, const at::Tensor& input) {
  at::Tensor sum = input.clone(at::MemoryFormat::Contiguous);
  all_reduce(group, sum).wait();
  return sum;
}

at::Tensor own_chunk(Group& group, const at::Tensor& input, std::int64_t dim) {
  const std::int64_t size = chunk_size(group, "split_to_group", input, dim);
  // A copy: a view would keep the whole alive, and autograd refuses to change
  // views that functions of our own return in place.
  return input.narrow(dim, group.rank() * size, size)
      .clone(at::MemoryFormat::Contiguous);
}

at::Tensor gathered(Group& group, const at::Tensor& input, std::int64_t dim) {
  std::vector<std::int64_t> sizes = input.sizes().vec();
  sizes.insert(sizes.begin(), group.size());
  at::Tensor parts = at::empty(sizes, input.options());
  // In its place already, nothing is copied again.
  at::Tensor own = parts[group.rank()];
  own.copy_(input);
  all_gather(group, parts.flatten(), own.flatten()).wait();
  return joined(parts, dim);
}

at::Tensor exchanged(Group& group, const at::Tensor& input,
                     std::int64_t scatter_dim, std::int64_t gather_dim) {
  const std::int64_t size = chunk_size(group, "all_to_all", input, scatter_dim);
  const at::Tensor sent = input.unflatten(scatter_dim, {group.size(), size})
                              .movedim(scatter_dim, 0)
                              .contiguous();
  at::Tensor received = at::empty(sent.sizes(), sent.options());
  all_to_all(group, received.flatten(), sent.flatten()).wait();
  return joined(received, gather_dim);
}

// The backward of each calls the partner's public function, which makes the
// gradient differentiable in its turn when create_graph asks for that.

class CopyToGroup : public Function<CopyToGroup> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            Group* group) {
    keep_group(context, group);
    return input;
  }
  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    return {reduce_from_group(kept_group(context), grads[0]), Variable()};
  }
};

class ReduceFromGroup : public Function<ReduceFromGroup> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            Group* group) {
    keep_group(context, group);
    return sum_over(*group, input);
  }
  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    return {copy_to_group(kept_group(context), grads[0]), Variable()};
  }
};

class SplitToGroup : public Function<SplitToGroup> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            Group* group, std::int64_t dim) {
    keep_group(context, group);
    context->saved_data["dim"] = dim;
    return own_chunk(*group, input, dim);
  }
  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    return {gather_from_group(kept_group(context), grads[0],
                              context->saved_data["dim"].toInt()),
            Variable(), Variable()};
  }
};

class GatherFromGroup : public Function<GatherFromGroup> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            Group* group, std::int64_t dim) {
    keep_group(context, group);
    context->saved_data["dim"] = dim;
    return gathered(*group, input, dim);
  }
  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    return {split_to_group(kept_group(context), grads[0],
                           context->saved_data["dim"].toInt()),
            Variable(), Variable()};
  }
};

class AllToAll : public Function<AllToAll> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input,
                            Group* group, std::int64_t scatter_dim,
                            std::int64_t gather_dim) {
    keep_group(context, group);
    context->saved_data["scatter_dim"] = scatter_dim;
    context->saved_data["gather_dim"] = gather_dim;
    return exchanged(*group, input, scatter_dim, gather_dim);
  }
  static variable_list backward(AutogradContext* context,
                                const variable_list& grads) {
    return {all_to_all(kept_group(context), grads[0],
                       context->saved_data["gather_dim"].toInt(),
                       context->saved_data["scatter_dim"].toInt()),
            Variable(), Variable(), Variable()};
  }
};

}  // namespace

at::Tensor copy_to_group(Group* group, const at::Tensor& input) {
  return is_alone(group) ? input : CopyToGroup::apply(input, group);
}

at::Tensor reduce_from_group(Group* group, const at::Tensor& input) {
  return is_alone(group) ? input : ReduceFromGroup::apply(input, group);
}

at::Tensor split_to_group(Group* group, const at::Tensor& input,
                          std::int64_t dim) {
  if (is_alone(group)) return input;
  dim = c10::maybe_wrap_dim(dim, input.dim());
  return SplitToGroup::apply(input, group, dim);
}

at::Tensor gather_from_group(Group* group, const at::Tensor& input,
                             std::int64_t dim) {
  if (is_alone(group)) return input;
  dim = c10::maybe_wrap_dim(dim, input.dim());
  return GatherFromGroup::apply(input, group, dim);
}

at::Tensor all_to_all(Group* group, const at::Tensor& input,
                      std::int64_t scatter_dim, std::int64_t gather_dim) {
  if (is_alone(group)) return input;
  scatter_dim = c10::maybe_wrap_dim(scatter_dim, input.dim());
  gather_dim = c10::maybe_wrap_dim(gather_dim, input.dim());
  return AllToAll::apply(input, group, scatter_dim, gather_dim);
}

}  // namespace nfold
