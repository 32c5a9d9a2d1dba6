#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "engine/engine_impl.h"
#include "engine/param_pieces.h"
#include "nfold/collectives.h"
#include "nfold/params.h"

namespace nfold {
namespace {

// One parameter's gradient on its way to the ranks.
struct Travelling {
  ShardedUnit* unit = nullptr;
  std::size_t param = 0;
  Fragment own{};
  at::Tensor flat{};  // see packed()

  const ParamState& state() const { return unit->params()[param]; }
};

void check(const Travelling& each, const at::Tensor& buffer, bool accumulate) {
  const auto& state = each.state();
  TORCH_CHECK_VALUE(std::any_of(state.tensors.begin(), state.tensors.end(),
                                [](const at::Tensor& tensor) {
                                  return tensor.grad().defined();
                                }),
                    state.name,
                    ": partition_gradients expected a gradient in `grad` but "
                    "found none; call backward of torch first");
  TORCH_CHECK_VALUE(!accumulate || buffer.defined(), state.name,
                    ": no buffer to accumulate to");
  if (!buffer.defined()) return;
  TORCH_CHECK_VALUE(buffer.dim() == 1 && buffer.is_floating_point() &&
                        buffer.numel() >= each.own.numel,
                    state.name,
                    ": expected a floating-point buffer of at "
                    "least [",
                    each.own.numel, "] but found ", buffer.scalar_type(), " ",
                    buffer.sizes());
}

// Takes the gradients of all tensors that are the parameter.
at::Tensor take_grad(const ParamState& state) {
  at::Tensor sum;
  for (const auto& tensor : state.tensors) {
    auto grad = std::exchange(tensor.mutable_grad(), at::Tensor());
    if (!grad.defined()) continue;
    grad = grad.detach();
    if (grad.layout() != at::kStrided) grad = grad.to_dense();
    sum = sum.defined() ? sum + grad : grad;
  }
  return sum.reshape({-1});
}

// Rank after rank, the elements that each owns, padded with zeros to the
// longest of these pieces: [num_shards * longest].
at::Tensor packed(const Travelling& each, const at::Tensor& grad) {
  const auto& layout = each.unit->layout();
  std::vector<Fragment> pieces;
  std::int64_t longest = 0;
  for (std::int64_t rank = 0; rank < layout.num_shards; ++rank) {
    pieces.push_back(
        fragment_in(layout, shard_range(layout, rank), each.param));
    longest = std::max(longest, pieces.back().numel);
  }
  auto flat = at::zeros({layout.num_shards * longest}, grad.options());
  for (std::size_t rank = 0; rank < pieces.size(); ++rank) {
    const auto& piece = pieces[rank];
    flat.narrow(0, static_cast<std::int64_t>(rank) * longest, piece.numel)
        .copy_(grad.narrow(0, piece.param_begin, piece.numel));
  }
  return flat;
}

}  // namespace

void partition_gradients(Engine& engine, const std::vector<at::Tensor>& params,
                         std::vector<at::Tensor>& buffers, bool accumulate) {
  auto& impl = engine.impl();
  TORCH_CHECK_VALUE(params.size() == buffers.size(),
                    "partition_gradients: expected a buffer, or an undefined "
                    "tensor, for each of ",
                    params.size(), " parameters but found ", buffers.size());
  std::vector<Travelling> all;
  for (std::size_t i = 0; i < params.size(); ++i) {
    const auto address = impl.model().find(params[i]);
    auto* unit = impl.model().units()[address.unit].get();
    impl.model().trained_index(address.unit);  // raises if it is frozen
    Travelling each{unit, address.param, owned_piece(*unit, address.param)};
    check(each, buffers[i], accumulate);
    for (const auto& other : all) {
      TORCH_CHECK_VALUE(other.unit != unit || other.param != each.param,
                        each.state().name,
                        ": stands twice among the parameters");
    }
    all.push_back(std::move(each));
  }

  at::NoGradGuard no_grad;
  std::vector<Pending> pendings;
  // In the order of the parameters, which all ranks have.
  using Way = std::pair<Group*, at::ScalarType>;
  std::vector<std::pair<Way, std::vector<at::Tensor>>> travelling;
  for (auto& each : all) {
    auto grad = take_grad(each.state());
    auto* group = each.unit->options().groups.shard;
    if (each.unit->options().owns_whole_range) {
      each.flat = grad.clone();
      pendings.push_back(all_reduce(*group, each.flat));
    } else {
      each.flat = packed(each, grad);
      const Way way(group, each.flat.scalar_type());
      auto found =
          std::find_if(travelling.begin(), travelling.end(),
                       [&](const auto& item) { return item.first == way; });
      if (found == travelling.end()) {
        found = travelling.insert(found, {way, {}});
      }
      found->second.push_back(each.flat);
    }
  }
  for (auto& [way, flats] : travelling) {
    pendings.push_back(reduce_scatter_coalesced(*way.first, flats));
  }
  for (auto& pending : pendings) pending.wait();

  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto& each = all[i];
    const auto longest = each.flat.numel() / each.unit->layout().num_shards;
    const auto begin = each.unit->options().owns_whole_range
                           ? 0
                           : each.unit->options().rank * longest;
    const auto sum = each.flat.narrow(0, begin, each.own.numel);
    if (auto* replicas = each.unit->options().groups.replica) {
      all_reduce(*replicas, sum).wait();
    }
    if (!buffers[i].defined()) {
      buffers[i] = at::empty({each.own.numel}, at::kFloat);
    }
    auto own = buffers[i].narrow(0, 0, each.own.numel);
    if (accumulate) {
      own.add_(sum);
    } else {
      own.copy_(sum);
    }
  }
}

}  // namespace nfold
