#include "nfold/collectives.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>

#include "base/hash.h"
#include "comm/group_impl.h"

namespace nfold {
namespace {

constexpr c10::ScalarType kReducible[] = {
    c10::ScalarType::Float,    c10::ScalarType::Double, c10::ScalarType::Half,
    c10::ScalarType::BFloat16, c10::ScalarType::Char,   c10::ScalarType::Byte,
    c10::ScalarType::Int,      c10::ScalarType::Long};

// Checks arguments before anything is sent; texts name rank and collective.
class Checker {
 public:
  Checker(const Group& group, Collective kind) : group_(group), kind_(kind) {}

  void tensor(const at::Tensor& tensor, const char* argument) const {
    TORCH_CHECK_VALUE(tensor.defined(), where(), argument, " is undefined");
    TORCH_CHECK_VALUE(tensor.device().is_cpu(), where(), argument,
                      ": expected a CPU tensor but found one on ",
                      tensor.device());
    TORCH_CHECK_VALUE(tensor.layout() == at::kStrided && tensor.is_contiguous(),
                      where(), argument,
                      ": expected a contiguous tensor but found sizes ",
                      tensor.sizes());
  }

  void same_dtype(const at::Tensor& a, const at::Tensor& b) const {
    TORCH_CHECK_VALUE(a.scalar_type() == b.scalar_type(), where(),
                      "expected tensors of one dtype but found ",
                      a.scalar_type(), " and ", b.scalar_type());
  }

  void numel(const at::Tensor& tensor, const char* argument,
             std::int64_t expected) const {
    TORCH_CHECK_VALUE(tensor.numel() == expected, where(), argument,
                      ": expected ", expected, " elements but found ",
                      tensor.numel());
  }

  void divisible(const at::Tensor& tensor, const char* argument) const {
    TORCH_CHECK_VALUE(tensor.numel() % group_.size() == 0, where(), argument,
                      ": expected a multiple of ", group_.size(),
                      " elements, one shard for each rank, but found ",
                      tensor.numel());
  }

  void reducible(const at::Tensor& tensor) const {
    TORCH_CHECK_NOT_IMPLEMENTED(
        std::find(std::begin(kReducible), std::end(kReducible),
                  tensor.scalar_type()) != std::end(kReducible),
        where(), "cannot reduce ", tensor.scalar_type(),
        "; use float32, float64, float16, bfloat16, int8, uint8, int32 or "
        "int64 (uint8 instead of bool)");
  }

  std::string where() const {
    return c10::str(
        "[rank ",
        group_.global_ranks()[static_cast<std::size_t>(group_.rank())],
        "] group '", group_.name(), "': ", name_of(kind_), ": ");
  }

 private:
  const Group& group_;
  const Collective kind_;
};

std::byte* data_of(const at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}

FlatView view_of(const at::Tensor& tensor, int num_shards) {
  return {data_of(tensor), tensor.scalar_type(), tensor.numel(),
          (tensor.numel() + num_shards - 1) / num_shards};
}

CollectiveCall call_of(Collective kind, at::ArrayRef<at::Tensor> tensors) {
  CollectiveCall call;
  call.kind = kind;
  call.num_tensors = static_cast<std::int32_t>(tensors.size());
  Hasher hasher;
  for (const at::Tensor& tensor : tensors) {
    call.dtype = tensor.scalar_type();
    call.numel += tensor.numel();
    hasher.add_number(tensor.numel());
  }
  call.layout = hasher.digest();
  return call;
}

bool overlaps(const at::Tensor& a, const at::Tensor& b) {
  const std::byte* a_begin = data_of(a);
  const std::byte* b_begin = data_of(b);
  return a_begin < b_begin + b.nbytes() && b_begin < a_begin + a.nbytes();
}

void copy_bytes(std::byte* to, const std::byte* from, std::size_t num_bytes) {
  if (to != from && num_bytes > 0) std::memmove(to, from, num_bytes);
}

// Of each tensor: checks, and the view with one shard for each rank.
std::vector<FlatView> checked_views(const Checker& check, const Group& group,
                                    const std::vector<at::Tensor>& tensors,
                                    const char* argument) {
  TORCH_CHECK_VALUE(!tensors.empty(), check.where(), argument,
                    ": expected at least one tensor but found none");
  std::vector<FlatView> views;
  for (const at::Tensor& tensor : tensors) {
    check.tensor(tensor, argument);
    check.divisible(tensor, argument);
    check.same_dtype(tensor, tensors.front());
    views.push_back(view_of(tensor, group.size()));
  }
  return views;
}

Pending issue_reduce_scatter(Group& group, std::vector<at::Tensor> keep_alive,
                             std::vector<FlatView> views,
                             std::vector<std::byte*> outputs,
                             const CollectiveCall& call) {
  return group.impl().issue(
      call, [keep_alive = std::move(keep_alive), views = std::move(views),
             outputs = std::move(outputs)](GroupTransport& transport,
                                           const CollectiveCall& numbered) {
        return transport.reduce_scatter(numbered, views, outputs);
      });
}

}  // namespace

Pending all_gather(Group& group, at::Tensor output, at::Tensor shard) {
  const Checker check(group, Collective::kAllGather);
  check.tensor(output, "output");
  check.tensor(shard, "shard");
  check.same_dtype(output, shard);
  check.numel(output, "output", shard.numel() * group.size());
  const FlatView view = view_of(output, group.size());
  GroupImpl& impl = group.impl();
  if (group.size() == 1) {
    copy_bytes(view.data, data_of(shard), shard.nbytes());
    return impl.count_local(Collective::kAllGather);
  }
  const auto call = call_of(Collective::kAllGather, {output});
  return impl.issue(
      call, [rank = group.rank(), view, output = std::move(output),
             shard = std::move(shard)](GroupTransport& transport,
                                       const CollectiveCall& numbered) {
        copy_bytes(view.shard(rank), data_of(shard), shard.nbytes());
        return transport.all_gather(numbered, {view});
      });
}

Pending all_gather_coalesced(Group& group, std::vector<at::Tensor> outputs) {
  const Checker check(group, Collective::kAllGather);
  auto views = checked_views(check, group, outputs, "outputs");
  GroupImpl& impl = group.impl();
  if (group.size() == 1) return impl.count_local(Collective::kAllGather);
  const auto call = call_of(Collective::kAllGather, outputs);
  return impl.issue(
      call, [views = std::move(views), outputs = std::move(outputs)](
                GroupTransport& transport, const CollectiveCall& numbered) {
        return transport.all_gather(numbered, views);
      });
}

Pending reduce_scatter(Group& group, at::Tensor output, at::Tensor input,
                       ReduceOp op) {
  const Checker check(group, Collective::kReduceScatter);
  check.tensor(output, "output");
  check.tensor(input, "input");
  check.same_dtype(output, input);
  check.numel(input, "input", output.numel() * group.size());
  check.reducible(input);
  const FlatView view = view_of(input, group.size());
  TORCH_CHECK_VALUE(
      !overlaps(output, input) || data_of(output) == view.shard(group.rank()),
      check.where(), "output overlaps input but is not this rank's part of it");
  if (group.size() == 1) {
    copy_bytes(data_of(output), data_of(input), input.nbytes());
    return group.impl().count_local(Collective::kReduceScatter);
  }
  auto call = call_of(Collective::kReduceScatter, {input});
  call.op = op;
  std::byte* to = data_of(output);
  return issue_reduce_scatter(group, {std::move(output), std::move(input)},
                              {view}, {to}, call);
}

Pending reduce_scatter_coalesced(Group& group, std::vector<at::Tensor> inputs,
                                 bool is_empty, std::vector<at::Tensor> outputs,
                                 ReduceOp op) {
  const Checker check(group, Collective::kReduceScatter);
  auto views = checked_views(check, group, inputs, "inputs");
  check.reducible(inputs.front());
  outputs.resize(inputs.size());
  std::vector<std::byte*> sums;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    sums.push_back(views[i].shard(group.rank()));
    if (!outputs[i].defined()) continue;
    check.tensor(outputs[i], "outputs");
    check.same_dtype(outputs[i], inputs[i]);
    check.numel(outputs[i], "outputs", views[i].shard_numel);
    TORCH_CHECK_VALUE(!overlaps(outputs[i], inputs[i]), check.where(),
                      "an output overlaps its input");
    sums.back() = data_of(outputs[i]);
  }
  if (group.size() == 1) {
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const auto num_bytes = inputs[i].nbytes();
      if (is_empty && num_bytes > 0) std::memset(sums[i], 0, num_bytes);
      if (!is_empty) copy_bytes(sums[i], views[i].data, num_bytes);
    }
    return group.impl().count_local(Collective::kReduceScatter);
  }
  auto call = call_of(Collective::kReduceScatter, inputs);
  call.op = op;
  call.is_empty = is_empty;
  for (auto& output : outputs) {
    if (output.defined()) inputs.push_back(std::move(output));
  }
  return issue_reduce_scatter(group, std::move(inputs), std::move(views),
                              std::move(sums), call);
}

Pending all_reduce(Group& group, at::Tensor tensor, ReduceOp op) {
  const Checker check(group, Collective::kAllReduce);
  check.tensor(tensor, "tensor");
  check.reducible(tensor);
  GroupImpl& impl = group.impl();
  if (group.size() == 1) return impl.count_local(Collective::kAllReduce);
  auto call = call_of(Collective::kAllReduce, {tensor});
  call.op = op;
  const FlatView view = view_of(tensor, group.size());
  return impl.issue(
      call, [view, tensor = std::move(tensor)](GroupTransport& transport,
                                               const CollectiveCall& numbered) {
        return transport.all_reduce(numbered, view);
      });
}

Pending broadcast(Group& group, at::Tensor tensor, int source) {
  const Checker check(group, Collective::kBroadcast);
  check.tensor(tensor, "tensor");
  TORCH_CHECK_VALUE(source >= 0 && source < group.size(), check.where(),
                    "source: expected a rank of the group, 0 to ",
                    group.size() - 1, ", but found ", source);
  GroupImpl& impl = group.impl();
  if (group.size() == 1) return impl.count_local(Collective::kBroadcast);
  auto call = call_of(Collective::kBroadcast, {tensor});
  call.source = source;
  const FlatView view = view_of(tensor, 1);
  return impl.issue(
      call, [view, tensor = std::move(tensor)](GroupTransport& transport,
                                               const CollectiveCall& numbered) {
        return transport.broadcast(numbered, view);
      });
}

Pending all_to_all(Group& group, at::Tensor output, at::Tensor input) {
  const Checker check(group, Collective::kAllToAll);
  check.tensor(output, "output");
  check.tensor(input, "input");
  check.same_dtype(output, input);
  check.numel(output, "output", input.numel());
  check.divisible(input, "input");
  TORCH_CHECK_VALUE(!overlaps(output, input), check.where(),
                    "output overlaps input");
  GroupImpl& impl = group.impl();
  if (group.size() == 1) {
    copy_bytes(data_of(output), data_of(input), input.nbytes());
    return impl.count_local(Collective::kAllToAll);
  }
  const auto call = call_of(Collective::kAllToAll, {input});
  const FlatView to = view_of(output, group.size());
  const FlatView from = view_of(input, group.size());
  return impl.issue(
      call, [to, from, output = std::move(output), input = std::move(input)](
                GroupTransport& transport, const CollectiveCall& numbered) {
        return transport.all_to_all(numbered, to, from);
      });
}

Pending barrier(Group& group) {
  GroupImpl& impl = group.impl();
  if (group.size() == 1) return impl.count_local(Collective::kBarrier);
  CollectiveCall call;
  return impl.issue(
      call, [](GroupTransport& transport, const CollectiveCall& numbered) {
        return transport.barrier(numbered);
      });
}

}  // namespace nfold
