#include "param/sharded_unit.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "comm/two_hops.h"
#include "kernels/cast_copy.h"
#include "nfold/quantized_collectives.h"
#include "param/released_storage.h"

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

// Copies `values`, which belong at `range` of a unit, into `flat`, which holds
// its range `held`, as far as they meet.
void copy_common(const at::Tensor& flat, const FlatRange& held,
                 const at::Tensor& values, const FlatRange& range) {
  const auto common = intersection(range, held);
  if (common.numel == 0) return;
  flat.narrow(0, common.begin - held.begin, common.numel)
      .copy_(values.narrow(0, common.begin - range.begin, common.numel));
}

void zero_outside(const at::Tensor& flat, const FlatRange& range) {
  const auto end = range.begin + range.numel;
  flat.narrow(0, 0, range.begin).zero_();
  flat.narrow(0, end, flat.numel() - end).zero_();
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
    case UnitState::kSecondary:
      return "secondary";
  }
  return "unknown";
}

ShardedUnit::ShardedUnit(std::vector<ParamState> params,
                         ShardedUnitOptions options, InitialValues initial)
    : options_(std::move(options)),
      params_(std::move(params)),
      layout_(make_unit_layout(numels_of(params_),
                               c10::elementSize(options_.dtype),
                               options_.num_shards)) {
  TORCH_INTERNAL_ASSERT(options_.is_resident || !options_.owns_whole_range);
  TORCH_INTERNAL_ASSERT(!options_.codec || (!options_.is_resident &&
                                            options_.codec->is_symmetric));
  TORCH_INTERNAL_ASSERT(!options_.rests_encoded ||
                        (options_.codec && !options_.is_trained));
  at::NoGradGuard no_grad;
  allocate_values();
  for (std::size_t i = 0; i < params_.size(); ++i) {
    const auto& param = params_[i].tensor();
    if (initial == InitialValues::kFromParams) {
      write_param(i, 0, param.detach().reshape({-1}));
    }
    const auto view = part(full_, layout_.param_range(i)).view(param.sizes());
    for (auto& tensor : params_[i].tensors) tensor.set_data(view);
  }
  if (initial == InitialValues::kFromParams) publish_initial();
}

void ShardedUnit::allocate_values() {
  const at::TensorOptions stored(options_.dtype);
  if (options_.is_resident) {
    full_ = at::zeros({layout_.numel()}, stored);
  } else {
    full_ = make_released(layout_.numel(), options_.dtype, access_error());
    allocate_shared();
    if (!shared_) shard_ = at::zeros({held_range().numel}, stored);
    state_ = UnitState::kSharded;
  }
  if (!options_.is_trained) return;
  master_ = options_.master_dtype == options_.dtype
                ? owned()
                : at::zeros({owned_range().numel},
                            at::TensorOptions(options_.master_dtype));
}

bool ShardedUnit::shares_memory(const ShardedUnitOptions& options) {
  const auto& groups = options.groups;
  return !options.is_resident && groups.shard && !groups.secondary &&
         !groups.inter_node && !options.codec && !options.rests_encoded;
}

void ShardedUnit::allocate_shared() {
  if (!shares_memory(options_)) return;
  const auto range = shard_range_of_rank();
  const auto element_bytes =
      static_cast<std::int64_t>(c10::elementSize(options_.dtype));
  shared_ = SharedArray::make(
      *options_.groups.shard,
      static_cast<std::size_t>(layout_.numel() * element_bytes), options_.name);
  if (!shared_) return;
  shard_ = at::from_blob(
      shared_->data() + range.begin * element_bytes, {range.numel},
      [array = shared_](void*) {}, at::TensorOptions(options_.dtype));
}

void ShardedUnit::publish_initial() {
  rest_shard();
  if (shared_) shared_->publish();
}

void ShardedUnit::write_param(std::size_t param, std::int64_t begin,
                              const at::Tensor& values) {
  at::NoGradGuard no_grad;
  const FlatRange range{layout_.param_offsets[param] + begin, values.numel()};
  copy_common(options_.is_resident ? full_ : decoded_shard(), held_range(),
              values, range);
  if (master_bytes() > 0) copy_common(master_, owned_range(), values, range);
}

FlatRange ShardedUnit::held_range() const {
  return options_.is_resident ? FlatRange{0, layout_.numel()}
                              : shard_range_of_rank();
}

at::Tensor ShardedUnit::owned() const {
  return options_.is_resident ? part(full_, owned_range()) : decoded_shard();
}

const at::Tensor& ShardedUnit::decoded_shard() const {
  if (!shard_.defined()) {
    shard_ = dequantized(std::exchange(encoded_shard_, at::Tensor()),
                         layout_.shard_numel, options_.dtype, *options_.codec);
  }
  return shard_;
}

void ShardedUnit::rest_shard() {
  if (!options_.rests_encoded || encoded_shard_.defined()) return;
  encoded_shard_ = quantized(shard_, *options_.codec);
  shard_.reset();
}

at::Tensor ShardedUnit::encoded(const FlatRange& range,
                                const at::Tensor& values) const {
  if (range.numel == 0) return at::empty({0}, at::kByte);
  const auto shards =
      empty_shards(values, range.numel / layout_.shard_numel, *options_.codec);
  encode_shards(shards, 0, values, *options_.codec);
  return shards.encoded;
}

FlatRange ShardedUnit::owned_range() const {
  return options_.owns_whole_range ? FlatRange{0, layout_.numel()}
                                   : shard_range(layout_, options_.rank);
}

at::Tensor ShardedUnit::low_precision_owned() const {
  return options_.master_dtype == options_.dtype ? at::Tensor() : owned();
}

void ShardedUnit::allocate_grad() {
  if (grad_.defined()) return;
  grad_ =
      at::empty({owned_range().numel}, at::TensorOptions(options_.grad_dtype));
}

const at::Tensor& ShardedUnit::grad() {
  allocate_grad();
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
  allocate_grad();
  kernels::scaled_cast(grad_, owned_part, scale);
}

void ShardedUnit::reserve_grad() {
  if (!options_.owns_whole_range) allocate_grad();
}

at::Tensor ShardedUnit::place_for_first_grad(at::ScalarType dtype,
                                             float scale) {
  const bool is_copied = !has_grad_ && !options_.owns_whole_range &&
                         scale == 1.0f && dtype == options_.grad_dtype;
  if (!is_copied) return {};
  allocate_grad();
  return grad_;
}

void ShardedUnit::clear_grad() {
  has_grad_ = false;
  // A whole gradient came as the memory of a bucket and will again; a shard
  // keeps its own.
  if (options_.owns_whole_range) grad_.reset();
}

void ShardedUnit::begin_gather(std::vector<ShardedUnit*> units,
                               GatherMode mode) {
  std::erase_if(units, [](const auto* unit) { return !unit->is_released(); });
  for (auto* unit : units) {
    if (!unit->uses_secondary(mode)) unit->state_ = UnitState::kSharded;
    unit->is_exact_ =
        !unit->travels_encoded(mode) || unit->options_.rests_encoded;
    unit->rest_shard();
    unit->allocate_full(unit->travels_encoded(mode));
    if (unit->shared_) unit->state_ = UnitState::kGathering;
  }
  std::erase_if(units, [](const auto* unit) { return unit->shared_; });
  while (!units.empty()) {
    const auto& first = *units.front();
    const auto others = std::stable_partition(
        units.begin(), units.end(), [&](const ShardedUnit* unit) {
          return unit == &first || (mode != GatherMode::kAllReduce &&
                                    unit->travels_with(first, mode));
        });
    const std::vector<ShardedUnit*> together(units.begin(), others);
    const auto pending = std::make_shared<Pending>(gather(together, mode));
    for (auto* unit : together) {
      unit->gather_ = pending;
      unit->state_ = UnitState::kGathering;
    }
    units.erase(units.begin(), others);
  }
}

bool ShardedUnit::travels_with(const ShardedUnit& other,
                               GatherMode mode) const {
  return options_.dtype == other.options_.dtype && state_ == other.state_ &&
         gather_groups(mode) == other.gather_groups(mode) &&
         travels_encoded(mode) == other.travels_encoded(mode) &&
         (!travels_encoded(mode) || options_.codec == other.options_.codec);
}

bool ShardedUnit::travels_encoded(GatherMode mode) const {
  if (!options_.codec) return false;
  return mode == GatherMode::kAllGather || options_.rests_encoded;
}

bool ShardedUnit::uses_secondary(GatherMode mode) const {
  if (state_ != UnitState::kSecondary) return false;
  return travels_encoded(mode) || !options_.codec;
}

c10::SmallVector<Group*, 2> ShardedUnit::gather_groups(GatherMode mode) const {
  const auto& groups = options_.groups;
  if (shared_) return {};
  if (uses_secondary(mode)) return {groups.secondary};
  if (groups.inter_node && mode != GatherMode::kAllReduce) {
    return {groups.inter_node, groups.intra_node};
  }
  return {groups.shard};
}

Pending ShardedUnit::gather(const std::vector<ShardedUnit*>& units,
                            GatherMode mode) {
  const auto& first = *units.front();
  const auto groups = first.gather_groups(mode);
  if (first.travels_encoded(mode)) return gather_encoded(units);
  if (mode == GatherMode::kAllReduce) {
    zero_outside(first.full_, first.given_range());
    return all_reduce(*groups.front(), first.full_);
  }
  std::vector<at::Tensor> outputs;
  outputs.reserve(units.size());
  for (const auto* unit : units) outputs.push_back(unit->full_);
  return groups.size() == 1
             ? all_gather_coalesced(*groups.front(), std::move(outputs))
             : all_gather_two_hops(*groups[0], *groups[1], std::move(outputs));
}

Pending ShardedUnit::gather_encoded(const std::vector<ShardedUnit*>& units) {
  const auto& codec = *units.front()->options_.codec;
  const auto groups = units.front()->gather_groups();
  TORCH_INTERNAL_ASSERT(groups.size() == 1, "codecs know one hop");
  std::vector<EncodedShards> gathered;
  for (const auto* unit : units) {
    const auto numel = unit->layout_.shard_numel;
    const auto given = unit->given_range();
    auto shards = empty_shards(unit->full_, unit->layout_.num_shards, codec);
    const auto first = numel == 0 ? 0 : given.begin / numel;
    const auto count = numel == 0 ? 0 : given.numel / numel;
    if (unit->state_ == UnitState::kSecondary) {
      shards.bytes_of(first, count).copy_(unit->secondary_);
    } else if (unit->options_.rests_encoded) {
      shards.bytes_of(first, count).copy_(unit->encoded_shard_);
    } else {
      encode_shards(shards, first, unit->shard_, codec);
    }
    gathered.push_back(std::move(shards));
  }
  return all_gather_encoded(*groups.front(), std::move(gathered), codec);
}

void ShardedUnit::finish_gather() {
  check_state(!is_released(), "finish_gather");
  if (state_ == UnitState::kUnsharded) return;
  if (shared_) {
    shared_->await_versions();
  } else {
    gather_->wait();
    gather_.reset();
  }
  state_ = UnitState::kUnsharded;
}

void ShardedUnit::begin_update() {
  check_state(state_ != UnitState::kGathering, "begin_update");
  if (!shared_) return;
  if (state_ == UnitState::kUnsharded && !is_unshared_) release();
  shared_->begin_update();
}

void ShardedUnit::unshare() {
  if (!shared_ || is_unshared_) return;
  check_state(state_ == UnitState::kUnsharded, "unshare");
  at::NoGradGuard no_grad;
  take_memory(full_, access_error());
  give_memory(full_);
  full_.copy_(at::from_blob(shared_->data(), {layout_.numel()},
                            at::TensorOptions(options_.dtype)));
  is_unshared_ = true;
}

void ShardedUnit::bump_versions() {
  ++version_;
  for (const auto& param : params_) {
    for (const auto& tensor : param.tensors) {
      tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
}

void ShardedUnit::publish_shard() {
  check_state(state_ != UnitState::kGathering, "publish_shard");
  rest_shard();
  bump_versions();
  if (shared_) shared_->publish();
  if (!options_.is_resident) {
    if (state_ == UnitState::kUnsharded) free_full();
    secondary_.reset();
    state_ = UnitState::kSharded;
    return;
  }
  const bool owns_everything =
      options_.owns_whole_range || options_.num_shards == 1;
  state_ = owns_everything ? UnitState::kUnsharded : UnitState::kSharded;
}

void ShardedUnit::release() {
  check_state(state_ != UnitState::kGathering, "release");
  if (options_.is_resident || is_released()) return;
  state_ = UnitState::kSharded;
  if (options_.groups.secondary) {
    at::NoGradGuard no_grad;
    if (!secondary_.defined()) {
      const auto values = part(full_, secondary_range());
      secondary_ =
          options_.codec ? encoded(secondary_range(), values) : values.clone();
    }
    state_ = UnitState::kSecondary;
  }
  free_full();
}

void ShardedUnit::free_full() {
#ifndef NDEBUG
  const bool is_own = !shared_ || is_unshared_;
  // Whatever still reads the memory shows in the loss.
  if (is_own && full_.is_floating_point()) full_.fill_(std::nan(""));
  TORCH_INTERNAL_ASSERT(is_own || shared_->is_current(), "unit ", options_.name,
                        " changed while it was read");
#endif
  take_memory(full_, access_error());
  is_unshared_ = false;
}

FlatRange ShardedUnit::secondary_range() const {
  const auto& group = *options_.groups.secondary;
  const auto numel = layout_.numel() / group.size();
  return {group.rank() * numel, numel};
}

FlatRange ShardedUnit::given_range() const {
  return state_ == UnitState::kSecondary ? secondary_range()
                                         : shard_range_of_rank();
}

void ShardedUnit::publish_full(const std::vector<std::size_t>& params) {
  check_state(state_ == UnitState::kUnsharded && is_exact_, "publish_full");
  at::NoGradGuard no_grad;
  unshare();
  begin_update();
  for (const auto param : params) {
    const auto range = layout_.param_range(param);
    const auto values = part(full_, range);
    if (!options_.is_resident) {
      copy_common(decoded_shard(), held_range(), values, range);
    }
    if (master_bytes() > 0) copy_common(master_, owned_range(), values, range);
  }
  rest_shard();
  secondary_.reset();
  bump_versions();
  if (shared_) shared_->publish();
}

// The own part of what travels encoded comes with the others.
void ShardedUnit::allocate_full(bool is_encoded) {
  if (options_.is_resident) return;
  if (shared_) {
    lend_memory(full_, shared_memory());
    return;
  }
  give_memory(full_);
  if (is_encoded) return;
  part(full_, given_range())
      .copy_(state_ == UnitState::kSecondary ? secondary_ : shard_);
}

// Who still holds parameters when the unit is gone keeps the memory.
c10::DataPtr ShardedUnit::shared_memory() const {
  using Keeper = std::shared_ptr<SharedArray>;
  return {shared_->data(), new Keeper(shared_),
          [](void* keeper) { delete static_cast<Keeper*>(keeper); },
          full_.device()};
}

std::string ShardedUnit::access_error() const {
  constexpr std::size_t kMaxNames = 4;
  std::string names;
  for (std::size_t i = 0; i < params_.size() && i < kMaxNames; ++i) {
    names += (i == 0 ? "" : ", ") + params_[i].name;
  }
  if (params_.size() > kMaxNames) names += ", ...";
  return "the parameter's memory is sharded over ranks and this is a raw "
         "access to it (data_ptr, an accessor, from_blob), which nfold cannot "
         "see coming. Use operators, or open nfold::GatheredParameters first. "
         "One of: " +
         names;
}

std::int64_t ShardedUnit::params_bytes() const {
  return bytes_of(options_.is_resident ? full_ : shard_) +
         bytes_of(encoded_shard_) + bytes_of(secondary_);
}

std::int64_t ShardedUnit::full_bytes() const {
  return options_.is_resident || shared_ ? 0 : bytes_of(full_);
}

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
