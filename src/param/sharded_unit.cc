#include "param/sharded_unit.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "kernels/cast_copy.h"

namespace nfold {
namespace {

std::int64_t bytes_of(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.numel() * tensor.element_size() : 0;
}

std::vector<std::int64_t> numels_of(const std::vector<ParamState>& params) {
  std::vector<std::int64_t> numels;
  for (const auto& param : params) numels.push_back(param.tensor().numel());
  return numels;
}

// Copies every parameter to its place; dtype conversion rounds.
void copy_in(const std::vector<ParamState>& params, const UnitLayout& layout,
             const FlatRange& range, const at::Tensor& destination) {
  destination.zero_();
  for (const auto& fragment : fragments_in(layout, range)) {
    const auto source = params[fragment.param].tensor().detach().reshape({-1});
    destination.narrow(0, fragment.range_begin, fragment.numel)
        .copy_(source.narrow(0, fragment.param_begin, fragment.numel));
  }
}

}  // namespace

const char* name_of(UnitState state) {
  switch (state) {
    case UnitState::kSharded:
      return "sharded";
    case UnitState::kGathering:
      return "gathering";
    case UnitState::kUnsharded:
      return "unsharded";
  }
  return "unknown";
}

ShardedUnit::ShardedUnit(std::vector<ParamState> params,
                         ShardedUnitOptions options)
    : options_(std::move(options)),
      params_(std::move(params)),
      layout_(make_unit_layout(numels_of(params_),
                               c10::elementSize(options_.dtype),
                               options_.num_shards)) {
  at::NoGradGuard no_grad;
  full_ = at::empty({layout_.numel()}, at::TensorOptions(options_.dtype));
  copy_in(params_, layout_, {0, layout_.numel()}, full_);
  if (options_.is_trained) {
    if (options_.master_dtype == options_.dtype) {
      master_ = owned();
    } else {
      master_ = at::empty({owned_range().numel},
                          at::TensorOptions(options_.master_dtype));
      copy_in(params_, layout_, owned_range(), master_);
    }
  }
  for (std::size_t i = 0; i < params_.size(); ++i) {
    const auto view = part(full_, layout_.param_range(i))
                          .view(params_[i].tensor().sizes());
    for (auto& tensor : params_[i].tensors) tensor.set_data(view);
  }
}

FlatRange ShardedUnit::owned_range() const {
  return options_.owns_whole_range ? FlatRange{0, layout_.numel()}
                                   : shard_range(layout_, options_.rank);
}

at::Tensor ShardedUnit::low_precision_owned() const {
  return options_.master_dtype == options_.dtype ? at::Tensor() : owned();
}

const at::Tensor& ShardedUnit::grad() {
  if (!grad_.defined()) {
    grad_ = at::empty({owned_range().numel},
                      at::TensorOptions(options_.grad_dtype));
  }
  if (!has_grad_) {
    grad_.zero_();
    has_grad_ = true;
  }
  return grad_;
}

void ShardedUnit::accumulate_grad(at::Tensor reduced, float scale) {
  const auto owned_part = part(reduced, owned_range());
  if (has_grad_) {
    kernels::accumulate(grad_, owned_part, scale);
    return;
  }
  has_grad_ = true;
  if (options_.owns_whole_range &&
      reduced.scalar_type() == options_.grad_dtype) {
    if (scale != 1.0f) kernels::scaled_cast(reduced, reduced, scale);
    grad_ = std::move(reduced);
    return;
  }
  if (!grad_.defined()) {
    grad_ = at::empty({owned_range().numel},
                      at::TensorOptions(options_.grad_dtype));
  }
  kernels::scaled_cast(grad_, owned_part, scale);
}

void ShardedUnit::clear_grad() {
  has_grad_ = false;
  // A whole gradient came as the memory of a bucket and will again; a shard
  // keeps its own.
  if (options_.owns_whole_range) grad_.reset();
}

void ShardedUnit::begin_gather(Group& group,
                               std::vector<ShardedUnit*> units) {
  std::erase_if(units, [](const ShardedUnit* unit) {
    return unit->state_ != UnitState::kSharded;
  });
  // A collective moves one dtype.
  while (!units.empty()) {
    const auto dtype = units.front()->options_.dtype;
    const auto others = std::stable_partition(
        units.begin(), units.end(), [&](const ShardedUnit* unit) {
          return unit->options_.dtype == dtype;
        });
    std::vector<at::Tensor> outputs;
    for (auto unit = units.begin(); unit != others; ++unit) {
      (*unit)->state_ = UnitState::kGathering;
      outputs.push_back((*unit)->full_);
    }
    const auto gather = std::make_shared<Pending>(
        all_gather_coalesced(group, std::move(outputs)));
    for (auto unit = units.begin(); unit != others; ++unit) {
      (*unit)->gather_ = gather;
    }
    units.erase(units.begin(), others);
  }
}

void ShardedUnit::finish_gather() {
  check_state(state_ != UnitState::kSharded, "finish_gather");
  if (state_ == UnitState::kUnsharded) return;
  gather_->wait();
  gather_.reset();
  state_ = UnitState::kUnsharded;
}

void ShardedUnit::publish_shard() {
  check_state(state_ != UnitState::kGathering, "publish_shard");
  ++version_;
  for (const auto& param : params_) {
    for (const auto& tensor : param.tensors) {
      tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
  const bool owns_everything =
      options_.owns_whole_range || options_.num_shards == 1;
  state_ = owns_everything ? UnitState::kUnsharded : UnitState::kSharded;
}

void ShardedUnit::release() {
  check_state(state_ != UnitState::kGathering, "release");
}

std::int64_t ShardedUnit::params_bytes() const { return bytes_of(full_); }

std::int64_t ShardedUnit::master_bytes() const {
  return options_.is_trained && options_.master_dtype != options_.dtype
             ? bytes_of(master_)
             : 0;
}

std::int64_t ShardedUnit::grad_bytes() const { return bytes_of(grad_); }

at::Tensor ShardedUnit::part(const at::Tensor& flat, const FlatRange& range) {
  return flat.narrow(0, range.begin, range.numel);
}

void ShardedUnit::check_state(bool is_allowed, const char* operation) const {
  TORCH_INTERNAL_ASSERT(is_allowed, "unit ", options_.name, ": ", operation,
                        " is invalid while the unit is ", name_of(state_),
                        " (version ", version_, ", rank ", options_.rank, ")");
}

}  // namespace nfold
