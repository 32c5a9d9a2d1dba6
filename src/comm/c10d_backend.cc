#include "nfold/c10d_backend.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <utility>

#include "comm/all_to_all_parts.h"
#include "comm/c10d_call.h"
#include "comm/c10d_reduction.h"
#include "comm/group_impl.h"
#include "nfold/collectives.h"

namespace nfold {
namespace {

using c10d::OpType;
// Arguments are bytes to copy, not values to differentiate.
using BelowAutograd = at::AutoDispatchBelowADInplaceOrView;

constexpr char kBackendName[] = "nfold";

class GroupBackend : public c10d::Backend {
 public:
  explicit GroupBackend(std::shared_ptr<Group> group)
      : Backend(group->rank(), group->size()),
        shared_group_(std::move(group)) {}

  const std::string getBackendName() const override { return kBackendName; }
  c10::intrusive_ptr<Options> getBackendOptions() override;

  WorkPointer broadcast(Tensors& tensors,
                        const c10d::BroadcastOptions& opts) override;
  WorkPointer allreduce(Tensors& tensors,
                        const c10d::AllreduceOptions& opts) override;
  WorkPointer allreduce_coalesced(
      Tensors& tensors, const c10d::AllreduceCoalescedOptions& opts) override;
  WorkPointer reduce(Tensors& tensors,
                     const c10d::ReduceOptions& opts) override;

  WorkPointer allgather(TensorLists& outputs, Tensors& inputs,
                        const c10d::AllgatherOptions& opts) override;
  WorkPointer _allgather_base(at::Tensor& output, at::Tensor& input,
                              const c10d::AllgatherOptions& opts) override;
  WorkPointer allgather_into_tensor_coalesced(
      Tensors& outputs, Tensors& inputs,
      const c10d::AllgatherOptions& opts) override;
  WorkPointer gather(TensorLists& outputs, Tensors& inputs,
                     const c10d::GatherOptions& opts) override;
  WorkPointer scatter(Tensors& outputs, TensorLists& inputs,
                      const c10d::ScatterOptions& opts) override;

  WorkPointer reduce_scatter(Tensors& outputs, TensorLists& inputs,
                             const c10d::ReduceScatterOptions& opts) override;
  WorkPointer _reduce_scatter_base(
      at::Tensor& output, at::Tensor& input,
      const c10d::ReduceScatterOptions& opts) override;
  WorkPointer reduce_scatter_tensor_coalesced(
      Tensors& outputs, Tensors& inputs,
      const c10d::ReduceScatterOptions& opts) override;

  WorkPointer alltoall_base(at::Tensor& output, at::Tensor& input,
                            std::vector<std::int64_t>& output_splits,
                            std::vector<std::int64_t>& input_splits,
                            const c10d::AllToAllOptions& opts) override;
  WorkPointer alltoall(Tensors& outputs, Tensors& inputs,
                       const c10d::AllToAllOptions& opts) override;
  WorkPointer barrier(const c10d::BarrierOptions& opts) override;

  WorkPointer send(Tensors& tensors, int to, int tag) override;
  WorkPointer recv(Tensors& tensors, int from, int tag) override;
  WorkPointer recvAnysource(Tensors& tensors, int tag) override;

 private:
  Group& group() const { return *shared_group_; }
  C10dCall begin(OpType type, const char* title) const {
    return {group(), type, title};
  }
  WorkPointer reduce_in_place(const C10dCall& call, const at::Tensor& tensor,
                              const c10d::ReduceOp& op) const;
  WorkPointer reduce_scatter_flat(const C10dCall& call,
                                  const at::Tensor& output,
                                  const at::Tensor& input,
                                  const c10d::ReduceOp& op) const;
  [[noreturn]] void raise_no_messages(const char* function) const;

  const std::shared_ptr<Group> shared_group_;
};

c10::intrusive_ptr<c10d::Backend::Options> GroupBackend::getBackendOptions() {
  auto options =
      c10::make_intrusive<Options>(kBackendName, group().impl().spec().timeout);
  options->group_name = group().name();
  for (const int rank : group().global_ranks()) {
    options->global_ranks_in_group.push_back(static_cast<std::uint64_t>(rank));
  }
  return options;
}

// Sums.

WorkPointer GroupBackend::reduce_in_place(const C10dCall& call,
                                          const at::Tensor& tensor,
                                          const c10d::ReduceOp& op) const {
  const auto reduction = call.reduction(op, tensor);
  const auto values = reduction.prepared(tensor.contiguous());
  return call.follows(all_reduce(group(), values, reduction.op()), {tensor},
                      [reduction, values, tensor] {
                        reduction.finish(values);
                        if (!is_in_place(values, tensor)) tensor.copy_(values);
                      });
}

WorkPointer GroupBackend::allreduce(Tensors& tensors,
                                    const c10d::AllreduceOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::ALLREDUCE, "nfold:allreduce");
  return reduce_in_place(call, call.only(tensors), opts.reduceOp);
}

WorkPointer GroupBackend::reduce(Tensors& tensors,
                                 const c10d::ReduceOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::REDUCE, "nfold:reduce");
  const auto& tensor = call.only(tensors);
  const bool is_root = call.root(opts.rootRank) == group().rank();
  return reduce_in_place(call, is_root ? tensor : tensor.clone(),
                         opts.reduceOp);
}

WorkPointer GroupBackend::allreduce_coalesced(
    Tensors& tensors, const c10d::AllreduceCoalescedOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call =
      begin(OpType::ALLREDUCE_COALESCED, "nfold:allreduce_coalesced");
  TORCH_CHECK_VALUE(!tensors.empty(), call.where(),
                    "expected at least one tensor but found none");
  call.dense(tensors);
  call.same_dtype(tensors, tensors.front());
  const auto reduction = call.reduction(opts.reduceOp, tensors.front());
  const auto values = reduction.prepared(flattened(tensors));
  return call.follows(all_reduce(group(), values, reduction.op()), tensors,
                      [reduction, values, tensors] {
                        reduction.finish(values);
                        copy_in_turn(tensors, values);
                      });
}

WorkPointer GroupBackend::reduce_scatter_flat(const C10dCall& call,
                                              const at::Tensor& output,
                                              const at::Tensor& input,
                                              const c10d::ReduceOp& op) const {
  const auto reduction = call.reduction(op, output);
  const auto sums = reduction.raw(contiguous_or_new(output));
  return call.follows(
      nfold::reduce_scatter(group(), sums, reduction.prepared(input),
                            reduction.op()),
      {output}, [reduction, sums, output] {
        reduction.finish(sums);
        if (!is_in_place(sums, output)) output.copy_(sums);
      });
}

WorkPointer GroupBackend::_reduce_scatter_base(
    at::Tensor& output, at::Tensor& input,
    const c10d::ReduceScatterOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call =
      begin(OpType::_REDUCE_SCATTER_BASE, "nfold:_reduce_scatter_base");
  call.dense({output, input});
  call.same_dtype({input}, output);
  return reduce_scatter_flat(call, output, input.contiguous(), opts.reduceOp);
}

WorkPointer GroupBackend::reduce_scatter(
    Tensors& outputs, TensorLists& inputs,
    const c10d::ReduceScatterOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::REDUCE_SCATTER, "nfold:reduce_scatter");
  const auto& output = call.only(outputs);
  return reduce_scatter_flat(call, output,
                             flattened(call.for_each_rank(inputs, output)),
                             opts.reduceOp);
}

WorkPointer GroupBackend::reduce_scatter_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const c10d::ReduceScatterOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::REDUCE_SCATTER_TENSOR_COALESCED,
                          "nfold:reduce_scatter_tensor_coalesced");
  call.in_pairs(outputs, inputs);
  TORCH_CHECK_VALUE(!inputs.empty(), call.where(),
                    "expected at least one tensor but found none");
  call.same_dtype(outputs, inputs.front());
  call.same_dtype(inputs, inputs.front());
  const auto reduction = call.reduction(opts.reduceOp, inputs.front());
  Tensors values;
  Tensors sums;
  std::vector<Landing> landings;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    values.push_back(reduction.prepared(inputs[i].contiguous()));
    sums.push_back(reduction.raw(contiguous_or_new(outputs[i])));
    landings.push_back({outputs[i], sums[i]});
  }
  auto pending =
      nfold::reduce_scatter_coalesced(group(), std::move(values),
                                      /*is_empty=*/false, sums, reduction.op());
  return call.follows(std::move(pending), outputs,
                      [reduction, sums, finish = landed(std::move(landings))] {
                        for (const auto& sum : sums) reduction.finish(sum);
                        if (finish) finish();
                      });
}

// Copies.

WorkPointer GroupBackend::broadcast(Tensors& tensors,
                                    const c10d::BroadcastOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::BROADCAST, "nfold:broadcast");
  const auto& tensor = call.only(tensors);
  const auto values = tensor.contiguous();
  return call.follows(
      nfold::broadcast(group(), values, call.root(opts.rootRank)), tensors,
      landed({{tensor, values}}));
}

WorkPointer GroupBackend::allgather(TensorLists& outputs, Tensors& inputs,
                                    const c10d::AllgatherOptions& /*opts*/) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::ALLGATHER, "nfold:allgather");
  const auto& input = call.only(inputs);
  const Tensors& list = call.for_each_rank(outputs, input);
  const auto flat = at::empty({input.numel() * getSize()}, input.options());
  return call.follows(all_gather(group(), flat, input.contiguous()), list,
                      [list, flat] { copy_in_turn(list, flat); });
}

WorkPointer GroupBackend::_allgather_base(
    at::Tensor& output, at::Tensor& input,
    const c10d::AllgatherOptions& /*opts*/) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::_ALLGATHER_BASE, "nfold:_allgather_base");
  call.dense({output, input});
  const auto full = contiguous_or_new(output);
  return call.follows(all_gather(group(), full, input.contiguous()), {output},
                      landed({{output, full}}));
}

WorkPointer GroupBackend::allgather_into_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const c10d::AllgatherOptions& /*opts*/) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::ALLGATHER_COALESCED,
                          "nfold:allgather_into_tensor_coalesced");
  call.in_pairs(outputs, inputs);
  Tensors flats;
  std::vector<Landing> landings;
  bool is_of_one_dtype = true;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const std::int64_t numel = inputs[i].numel();
    TORCH_CHECK_VALUE(outputs[i].numel() == numel * getSize(), call.where(),
                      "output ", i, ": expected ", numel * getSize(),
                      " elements but found ", outputs[i].numel());
    call.same_dtype({inputs[i]}, outputs[i]);
    const auto full = contiguous_or_new(outputs[i]);
    const auto flat = full.view(-1);
    const auto shard = flat.narrow(0, getRank() * numel, numel);
    if (!inputs[i].is_contiguous() || !is_in_place(shard, inputs[i])) {
      shard.copy_(inputs[i].reshape(-1));
    }
    is_of_one_dtype &= flat.scalar_type() == outputs.front().scalar_type();
    flats.push_back(flat);
    landings.push_back({outputs[i], full});
  }
  if (!is_of_one_dtype) {
    for (auto& flat : flats) flat = flat.view(at::kByte);
  }
  return call.follows(all_gather_coalesced(group(), std::move(flats)), outputs,
                      landed(std::move(landings)));
}

WorkPointer GroupBackend::gather(TensorLists& outputs, Tensors& inputs,
                                 const c10d::GatherOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::GATHER, "nfold:gather");
  const auto& input = call.only(inputs);
  Tensors list;
  if (call.root(opts.rootRank) == getRank()) {
    list = call.for_each_rank(outputs, input);
  } else {
    call.no_list(outputs, opts.rootRank);
  }
  const auto flat = at::empty({input.numel() * getSize()}, input.options());
  return call.follows(all_gather(group(), flat, input.contiguous()), list,
                      [list, flat] { copy_in_turn(list, flat); });
}

WorkPointer GroupBackend::scatter(Tensors& outputs, TensorLists& inputs,
                                  const c10d::ScatterOptions& opts) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::SCATTER, "nfold:scatter");
  const auto& output = call.only(outputs);
  const int root = call.root(opts.rootRank);
  at::Tensor flat;
  if (root == getRank()) {
    flat = flattened(call.for_each_rank(inputs, output));
  } else {
    call.no_list(inputs, root);
    flat = at::empty({output.numel() * getSize()}, output.options());
  }
  const auto own = flat.narrow(0, getRank() * output.numel(), output.numel());
  return call.follows(nfold::broadcast(group(), flat, root), outputs,
                      landed({{output, own}}));
}

WorkPointer GroupBackend::alltoall_base(
    at::Tensor& output, at::Tensor& input,
    std::vector<std::int64_t>& output_splits,
    std::vector<std::int64_t>& input_splits,
    const c10d::AllToAllOptions& /*opts*/) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::ALLTOALL_BASE, "nfold:alltoall_base");
  call.dense({output, input});
  call.same_dtype({input}, output);
  const auto to_peers = input.contiguous();
  const auto from_peers = contiguous_or_new(output);
  auto finish = landed({{output, from_peers}});
  // What the others pass is not known here, so only this decides.
  if (output_splits.empty() && input_splits.empty()) {
    return call.follows(all_to_all(group(), from_peers, to_peers), {output},
                        std::move(finish));
  }
  auto pending =
      all_to_all_parts(group(), call.rows_by_rank(from_peers, output_splits),
                       call.rows_by_rank(to_peers, input_splits));
  return call.follows(std::move(pending), {output}, std::move(finish));
}

WorkPointer GroupBackend::alltoall(Tensors& outputs, Tensors& inputs,
                                   const c10d::AllToAllOptions& /*opts*/) {
  const BelowAutograd below_autograd;
  const auto call = begin(OpType::ALLTOALL, "nfold:alltoall");
  call.in_pairs(outputs, inputs);
  Tensors to_peers;
  Tensors from_peers;
  std::vector<Landing> landings;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    to_peers.push_back(inputs[i].contiguous());
    from_peers.push_back(contiguous_or_new(outputs[i]));
    landings.push_back({outputs[i], from_peers[i]});
  }
  return call.follows(
      all_to_all_parts(group(), std::move(from_peers), std::move(to_peers)),
      outputs, landed(std::move(landings)));
}

WorkPointer GroupBackend::barrier(const c10d::BarrierOptions& /*opts*/) {
  const auto call = begin(OpType::BARRIER, "nfold:barrier");
  return call.follows(nfold::barrier(group()), {});
}

// Not there.

void GroupBackend::raise_no_messages(const char* function) const {
  C10_THROW_ERROR(
      NotImplementedError,
      c10::str("[rank ", group().global_rank(), "] group '", group().name(),
               "': ", function,
               " is not implemented: nfold has collectives only; use "
               "alltoall_base with split sizes, in which all ranks take part, "
               "or a Gloo backend"));
}

WorkPointer GroupBackend::send(Tensors& /*tensors*/, int /*to*/, int /*tag*/) {
  raise_no_messages("send");
}

WorkPointer GroupBackend::recv(Tensors& /*tensors*/, int /*from*/,
                               int /*tag*/) {
  raise_no_messages("recv");
}

WorkPointer GroupBackend::recvAnysource(Tensors& /*tensors*/, int /*tag*/) {
  raise_no_messages("recvAnysource");
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> make_c10d_backend(
    std::shared_ptr<Group> group) {
  TORCH_CHECK_VALUE(group,
                    "make_c10d_backend: the group is null; this rank "
                    "may not be in it");
  return c10::make_intrusive<GroupBackend>(std::move(group));
}

c10::intrusive_ptr<c10d::Backend> make_c10d_backend(
    c10::intrusive_ptr<c10d::Store> store, int rank, int size,
    const WorldOptions& options) {
  const auto world = std::make_shared<World>(
      World::from_store(std::move(store), rank, size, options));
  // The group lives in the world, which lives as long as the backend.
  return make_c10d_backend(std::shared_ptr<Group>(world, &world->group()));
}

}  // namespace nfold
