#include "grad/grad_reducer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "base/profile.h"
#include "comm/group_impl.h"
#include "kernels/non_finite.h"

namespace nfold {

struct GradReducer::HookOwner {
  GradReducer* reducer = nullptr;
  std::vector<c10::intrusive_ptr<torch::autograd::Node>> accumulators;
};

namespace {

// Runs after autograd has added to the `grad` of one tensor.
class GradHook : public torch::autograd::FunctionPostHook {
 public:
  explicit GradHook(std::function<void(const at::Tensor&)> on_grad)
      : on_grad_(std::move(on_grad)) {}

  torch::autograd::variable_list operator()(
      const torch::autograd::variable_list& outputs,
      const torch::autograd::variable_list& inputs) override {
    on_grad_(inputs.at(0));
    return outputs;
  }

 private:
  std::function<void(const at::Tensor&)> on_grad_;
};

}  // namespace

GradReducer::GradReducer(Group& all, std::vector<ShardedUnit*> units,
                         GradReducerOptions options)
    : all_(all), units_(std::move(units)), options_(options) {
  std::vector<std::int64_t> numels;
  std::vector<BucketKind> kinds;
  for (std::size_t i = 0; i < units_.size(); ++i) {
    const auto* unit = units_[i];
    const auto dtype = comm_dtype_of(i);
    numels.push_back(unit->layout().numel());
    kinds.push_back({dtype, unit->options().groups.shard});
    Slot slot;
    slot.buffer = std::make_unique<UnitGradBuffer>(*unit, dtype);
    slot.late = std::make_unique<UnitGradBuffer>(*unit, dtype);
    slot.local =
        std::make_unique<UnitGradBuffer>(*unit, unit->options().grad_dtype);
    slots_.push_back(std::move(slot));
  }
  for (auto& members : plan_buckets(numels, kinds, options_.bucket_numel)) {
    for (const auto unit : members) slots_[unit].bucket = buckets_.size();
    buckets_.push_back(bucket_of(std::move(members)));
  }
  add_hooks();
}

at::ScalarType GradReducer::comm_dtype_of(std::size_t unit) const {
  return options_.comm_dtype.value_or(units_[unit]->options().dtype);
}

GradReducer::Bucket GradReducer::bucket_of(
    std::vector<std::size_t> units) const {
  const auto first = units.front();
  const auto& unit = units_[first]->options();
  Bucket bucket;
  bucket.units = std::move(units);
  bucket.group = unit.groups.shard;
  if (!options_.codec || comm_dtype_of(first) == at::kDouble) return bucket;
  bucket.hops = {unit.groups.reduce_intra_node, unit.groups.reduce_inter_node};
  if (!bucket.is_quantized()) bucket.hops.intra_node = bucket.group;
  TORCH_INTERNAL_ASSERT(bucket.hops.rank() == unit.rank &&
                        bucket.hops.places() * bucket.hops.nodes() ==
                            unit.num_shards);
  if (options_.feedback) {
    bucket.feedback = std::make_unique<ErrorFeedback>(*options_.feedback);
  }
  return bucket;
}

GradReducer::~GradReducer() { hooks_->reducer = nullptr; }

void GradReducer::add_hooks() {
  hooks_ = std::make_shared<HookOwner>();
  hooks_->reducer = this;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    const auto& params = units_[unit]->params();
    for (std::size_t param = 0; param < params.size(); ++param) {
      for (std::size_t i = 0; i < params[param].tensors.size(); ++i) {
        auto accumulator =
            torch::autograd::impl::grad_accumulator(params[param].tensors[i]);
        accumulator->add_post_hook(std::make_unique<GradHook>(
            [owner = std::weak_ptr<HookOwner>(hooks_),
             address = Address{unit, param, i}](const at::Tensor& arrived) {
              const auto alive = owner.lock();
              if (alive && alive->reducer) {
                alive->reducer->on_grad(address, arrived);
              }
            }));
        hooks_->accumulators.push_back(std::move(accumulator));
      }
    }
  }
}

void GradReducer::begin(std::string label) {
  TORCH_CHECK_VALUE(!is_active_,
                    "backward was called inside a backward of the same "
                    "engine; use torch::autograd::grad for inner gradients");
  is_active_ = true;
  label_ = std::move(label);
  next_bucket_ = 0;
  for (auto* unit : units_) unit->reserve_grad();
  for (auto& bucket : buckets_) bucket.is_launched = false;
}

void GradReducer::on_grad(const Address& address, const at::Tensor& arrived) {
  const std::lock_guard lock(mutex_);
  if (!is_active_) return;  // a backward of the user's own
  const auto& param = units_[address.unit]->params()[address.param];
  const auto& tensor = param.tensors[address.tensor];
  auto grad = std::exchange(tensor.mutable_grad(), at::Tensor());
  if (!grad.defined()) return;
  TORCH_CHECK_NOT_IMPLEMENTED(
      !grad.requires_grad(), "parameter ", param.name,
      ": its gradient has a graph of its own (create_graph); nfold reduces "
      "first-order gradients. Compute the penalty with torch::autograd::grad "
      "and pass a loss to Engine::backward");
  if (grad.layout() != at::kStrided) grad = grad.to_dense();
  note_non_finite(address, grad);

  auto& slot = slots_[address.unit];
  if (options_.reduces_at_boundary) {
    slot.local->add(address.param, address.tensor, std::move(grad),
                    options_.scale_before);
    return;
  }
  const bool is_late = buckets_[slot.bucket].is_launched;
  auto& buffer = is_late ? *slot.late : *slot.buffer;
  // Autograd keeps what it passed on until this hook returns, and reads it no
  // more; where `grad` took it over, both are views of one storage.
  const bool is_dying_view = arrived.defined() && arrived.has_storage() &&
                             arrived.use_count() == 1 &&
                             arrived.is_alias_of(grad);
  buffer.add(address.param, address.tensor, std::move(grad),
             options_.scale_before, is_dying_view ? 1 : 0);
  note_bytes();
  if (!is_late) launch_complete();
}

void GradReducer::note_non_finite(const Address& address,
                                  const at::Tensor& grad) {
  if (non_finite_) return;
  const auto flat = grad.reshape({-1});
  const auto element = kernels::first_non_finite(flat);
  if (element < 0) return;
  non_finite_ = NonFiniteGrad{address.unit, address.param, element,
                              flat[element].item<double>()};
}

void GradReducer::finish(bool is_boundary) {
  const std::lock_guard lock(mutex_);
  if (options_.reduces_at_boundary && !is_boundary) {
    is_active_ = false;
    return;
  }
  if (!options_.allows_unused) check_all_used();
  while (next_bucket_ < buckets_.size()) launch(next_bucket_++, false);
  finish_launch();
  reduce_late();
  is_active_ = false;
}

void GradReducer::check_all_used() const {
  std::string unused;
  for (std::size_t unit = 0; unit < units_.size(); ++unit) {
    const auto& slot = slots_[unit];
    if (buckets_[slot.bucket].is_launched) continue;  // it was complete
    const auto& buffer =
        options_.reduces_at_boundary ? *slot.local : *slot.buffer;
    const auto& params = units_[unit]->params();
    for (std::size_t param = 0; param < params.size(); ++param) {
      if (!buffer.has_param(param)) unused += "\n  " + params[param].name;
    }
  }
  TORCH_CHECK_VALUE(unused.empty(), "[rank ", all_.global_rank(), "] ", label_,
                    ": ignore_unused_parameters is false, but these "
                    "parameters got no gradient:",
                    unused,
                    "\nUse them in the loss, freeze them, or set "
                    "zero_optimization.ignore_unused_parameters to true.");
}

bool GradReducer::is_complete(const Bucket& bucket) const {
  return std::all_of(
      bucket.units.begin(), bucket.units.end(),
      [&](std::size_t unit) { return slots_[unit].buffer->is_complete(); });
}

void GradReducer::launch_complete() {
  while (next_bucket_ < buckets_.size() &&
         is_complete(buckets_[next_bucket_])) {
    launch(next_bucket_++, false);
    if (!options_.overlaps_backward) finish_launch();
  }
}

void GradReducer::launch(std::size_t bucket_index, bool is_late) {
  // One under way at a time bounds the memory to two buckets.
  finish_launch();
  const ProfileRange range("nfold::reduce_bucket");
  auto& bucket = buckets_[bucket_index];
  bucket.is_launched = true;
  Launch launch{.bucket = bucket_index};
  bool is_empty = true;
  for (const auto unit : bucket.units) {
    auto& slot = slots_[unit];
    auto& buffer = options_.reduces_at_boundary ? *slot.local
                   : is_late                    ? *slot.late
                                                : *slot.buffer;
    is_empty = is_empty && buffer.is_empty();
    auto flat = buffer.take();
    const auto dtype = comm_dtype_of(unit);
    if (flat.scalar_type() != dtype) flat = flat.to(dtype);
    launch.bytes += flat.numel() * flat.element_size();
    launch.flats.push_back(std::move(flat));
  }
  const std::string others =
      bucket.units.size() == 1
          ? ""
          : fmt::format(" and {} more units", bucket.units.size() - 1);
  const auto label = fmt::format("{}, gradient bucket {}{} of {}{}", label_,
                                 bucket_index, is_late ? " (late)" : "",
                                 units_[bucket.units.front()]->name(), others);
  for (auto* group :
       {bucket.group, bucket.hops.intra_node, bucket.hops.inter_node}) {
    if (group) group->impl().set_label(label);
  }
  reduce(bucket, launch, is_empty, is_late);
  under_way_ = std::move(launch);
  note_bytes();
}

void GradReducer::reduce(Bucket& bucket, Launch& launch, bool is_empty,
                         bool is_late) {
  auto& group = *bucket.group;
  launch.places.resize(launch.flats.size());
  if (options_.all_reduces) {
    for (const auto& flat : launch.flats) {
      launch.pendings.push_back(all_reduce(group, flat));
    }
  } else if (bucket.is_quantized()) {
    for (const auto& flat : launch.flats) {
      // What is sent and what is received.
      launch.bytes +=
          2 * group.size() *
          encoded_bytes(flat.numel() / group.size(), *options_.codec);
    }
    // What is late is no estimate of what the next step will lose.
    launch.pendings.push_back(quantized_reduce_scatter_coalesced(
        bucket.hops, launch.flats, *options_.codec,
        is_late ? nullptr : bucket.feedback.get()));
  } else {
    for (std::size_t i = 0; i < launch.flats.size(); ++i) {
      launch.places[i] = units_[bucket.units[i]]->place_for_first_grad(
          launch.flats[i].scalar_type(), options_.scale_after);
    }
    launch.pendings.push_back(
        reduce_scatter_coalesced(group, launch.flats, is_empty, launch.places));
  }
}

void GradReducer::scale_feedback(double ratio) {
  for (auto& bucket : buckets_) {
    if (bucket.feedback) bucket.feedback->scale(static_cast<float>(ratio));
  }
}

void GradReducer::drop_feedback() {
  for (auto& bucket : buckets_) {
    if (bucket.feedback) bucket.feedback->drop();
  }
}

std::int64_t GradReducer::feedback_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& bucket : buckets_) {
    if (bucket.feedback) bytes += bucket.feedback->bytes();
  }
  return bytes;
}

void GradReducer::finish_launch() {
  if (!under_way_) return;
  const ProfileRange range("nfold::wait_for_bucket");
  auto launch = std::exchange(under_way_, std::nullopt).value();
  const auto start = std::chrono::steady_clock::now();
  for (auto& pending : launch.pendings) pending.wait();
  wait_time_ += std::chrono::steady_clock::now() - start;
  const auto& units = buckets_[launch.bucket].units;
  for (std::size_t i = 0; i < units.size(); ++i) {
    auto& unit = *units_[units[i]];
    if (launch.places[i].defined()) {
      unit.accept_first_grad();
    } else {
      unit.accumulate_grad(std::move(launch.flats[i]), options_.scale_after);
    }
  }
}

void GradReducer::reduce_late() {
  const auto is_late = late_buckets();
  for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    if (!is_late[bucket]) continue;
    launch(bucket, true);
    finish_launch();
  }
}

// Those that got late gradients on any rank of their group.
std::vector<bool> GradReducer::late_buckets() {
  const auto num_buckets = static_cast<std::int64_t>(buckets_.size());
  auto flags = at::zeros({num_buckets}, at::TensorOptions(at::kByte));
  auto* is_late = flags.mutable_data_ptr<std::uint8_t>();
  std::vector<Group*> groups;
  for (const auto& bucket : buckets_) {
    if (bucket.group->size() == 1 ||
        std::count(groups.begin(), groups.end(), bucket.group) > 0) {
      continue;
    }
    groups.push_back(bucket.group);
  }
  for (const auto& slot : slots_) {
    if (!slot.late->is_empty()) is_late[slot.bucket] = 1;
  }
  const auto start = std::chrono::steady_clock::now();
  std::vector<bool> result(is_late, is_late + num_buckets);
  for (auto* group : groups) {
    group->impl().set_label(label_ + ", late gradients");
    auto of_group = flags.clone();
    all_reduce(*group, of_group, ReduceOp::kMax).wait();
    const auto* found = of_group.const_data_ptr<std::uint8_t>();
    for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
      if (buckets_[bucket].group == group) result[bucket] = found[bucket] != 0;
    }
  }
  wait_time_ += std::chrono::steady_clock::now() - start;
  return result;
}

void GradReducer::reset() {
  const std::lock_guard lock(mutex_);
  under_way_.reset();
  for (auto& slot : slots_) {
    slot.buffer->clear();
    slot.late->clear();
    slot.local->clear();
  }
  for (auto* unit : units_) unit->clear_grad();
  non_finite_.reset();
  is_active_ = false;
}

std::int64_t GradReducer::local_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& slot : slots_) bytes += slot.local->bytes();
  return bytes;
}

void GradReducer::note_bytes() {
  std::int64_t bytes = under_way_ ? under_way_->bytes : 0;
  for (const auto& slot : slots_) {
    bytes += slot.buffer->bytes() + slot.late->bytes();
  }
  peak_bytes_ = std::max(peak_bytes_, bytes);
}

}  // namespace nfold
