#include "engine/shard_filler.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "base/log.h"
#include "comm/gather_table.h"
#include "engine/param_pieces.h"
#include "nfold/collectives.h"
#include "param/deferred_storage.h"
#include "param/model_agreement.h"

namespace nfold {
namespace {

const c10::StorageImpl* storage_impl_of(const c10::Storage& storage) {
  return storage.unsafeGetStorageImpl();
}

at::Tensor flat(const at::Tensor& tensor) { return tensor.reshape({-1}); }

// The most precise values that the unit holds of its owned range.
at::Tensor kept_in(const ShardedUnit& unit) {
  return unit.options().is_trained ? unit.master() : unit.owned();
}

bool is_same_on_all(Group& group, std::uint64_t value) {
  const auto table = gather_table(group, {static_cast<std::int64_t>(value)});
  return table.eq(table[0]).all().item<bool>();
}

std::int64_t largest_bytes(const std::vector<ParamOrigin>& origins) {
  std::int64_t largest = 0;
  for (const auto& origin : origins) {
    largest = std::max(
        largest, static_cast<std::int64_t>(origin.tensor.storage().nbytes()));
  }
  return largest;
}

}  // namespace

std::vector<ParamOrigin> origins_of(const std::vector<ParamState>& params) {
  std::vector<ParamOrigin> origins;
  origins.reserve(params.size());
  for (const auto& param : params) {
    origins.push_back({param.name, param.names, param.tensor().detach()});
  }
  return origins;
}

ShardFiller::ShardFiller(Mesh& mesh, ShardedModel& model,
                         std::vector<ParamOrigin> origins)
    : group_(mesh.state_group()),
      tensor_group_(mesh.find("tensor_parallel")),
      model_(model),
      origins_(std::move(origins)) {
  std::unordered_map<std::string, ParamAddress> addresses;
  for (std::size_t unit = 0; unit < model_.units().size(); ++unit) {
    const auto& params = model_.units()[unit]->params();
    for (std::size_t i = 0; i < params.size(); ++i) {
      addresses[params[i].name] = {unit, i};
    }
  }
  for (auto& origin : origins_) origin.address = addresses.at(origin.name);
}

std::vector<std::string> ShardFiller::fill_from_tape(
    std::unique_ptr<ConstructionTape> tape, bool from_rank_0) {
  // Every rank makes all experts and keeps its own.
  const auto kept = has_experts() ? ConstructionTape::Kept::kWhatever
                                  : ConstructionTape::Kept::kSame;
  // Tensor ranks go the same way: they compare the values that they share.
  const auto is_same = [&] {
    const bool is_here = is_same_on_all(group_, tape->fingerprint(kept));
    return tensor_group_ == nullptr
               ? is_here
               : gather_table(*tensor_group_, {is_here}).all().item<bool>();
  };
  if (!from_rank_0 && !is_same()) {
    log_warning(
        "the ranks took different ways through the function that nfold::init "
        "calls; all ranks get what rank 0 built");
    from_rank_0 = true;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      !from_rank_0 || !has_experts(), "[rank ", group_.global_rank(),
      "] nfold::init: rank 0 has not built the experts of the other ranks, so "
      "it cannot send them. Let every rank compute its values "
      "(from_rank_0 = false), with the same seed and the same function.");
  if (!from_rank_0 || group_.size() == 1) {
    start(*tape, Role::kComputes);
    run(std::move(tape));
    return differing_;
  }
  if (group_.rank() == 0) {
    start(*tape, Role::kSends);
    try {
      run(std::move(tape));
    } catch (...) {
      announce(Command::kFailed);
      throw;
    }
    announce(Command::kDone);
    return {};
  }
  start(*tape, Role::kReceives);
  receive_all();
  run(std::move(tape));
  return {};
}

void ShardFiller::fill_from_file(std::unique_ptr<ConstructionTape> tape,
                                 const std::vector<at::Tensor>& sources) {
  start(*tape, Role::kReads);
  for (std::size_t i = 0; i < origins_.size(); ++i) {
    auto& unit = unit_of(i);
    const auto param = origins_[i].address.param;
    const auto values = flat(sources[i]);
    const auto piece = fragment_in(unit.layout(), unit.held_range(), param);
    unit.write_param(param, piece.param_begin,
                     values.narrow(0, piece.param_begin, piece.numel));
  }
  run(std::move(tape));
}

void ShardFiller::start(const ConstructionTape& tape, Role role) {
  role_ = role;
  for (std::size_t i = 0; i < origins_.size(); ++i) {
    if (!tape.is_deferred(origins_[i].tensor)) continue;
    by_storage_[storage_impl_of(origins_[i].tensor.storage())].push_back(i);
  }
  // Other tensors of the module lie on some of them too: these become real in
  // place, as the others must, and are taken from there. The tape holds one
  // reference and each origin one.
  std::erase_if(by_storage_, [&](const auto& item) {
    const auto& storage = origins_[item.second.front()].tensor.storage();
    return storage.use_count() > 1 + item.second.size();
  });
}

void ShardFiller::run(std::unique_ptr<ConstructionTape> tape) {
  ReplayOptions options;
  options.max_waiting_bytes = largest_bytes(origins_);
  replay(std::move(tape), this, options);
  if (role_ == Role::kReceives || role_ == Role::kReads) return;
  for (std::size_t i = 0; i < origins_.size(); ++i) {
    const auto& tensor = origins_[i].tensor;
    if (!by_storage_.contains(storage_impl_of(tensor.storage()))) {
      deliver(i, tensor);
    }
  }
}

ReplaySink::Destination ShardFiller::destination_of(
    const c10::Storage& deferred) {
  if (!by_storage_.contains(storage_impl_of(deferred))) {
    return Destination::kInPlace;
  }
  return role_ == Role::kComputes || role_ == Role::kSends
             ? Destination::kSink
             : Destination::kNowhere;
}

void ShardFiller::store(const c10::Storage& deferred, c10::Storage value) {
  for (const auto origin : by_storage_.at(storage_impl_of(deferred))) {
    deliver(origin, tensor_on(value, origins_[origin].tensor));
  }
}

void ShardFiller::deliver(std::size_t origin, at::Tensor value) {
  if (value.numel() == 0) return;
  if (role_ == Role::kSends) {
    announce(Command::kValue, origin);
    value = flat(value).contiguous();
    // What tensor ranks share comes from the first of them.
    if (auto* replicas = unit_of(origin).options().groups.tensor_replicas) {
      broadcast(*replicas, value, /*source=*/0).wait();
    }
    broadcast(group_, value, /*source=*/0).wait();
  } else {
    const auto groups = unit_of(origin).options().groups;
    const auto& placement = unit_of(origin).params()[0].placement;
    for (auto& name :
         agree_on_values([&](const Placement&) { return groups; },
                         {{origins_[origin].name, value, placement}})) {
      differing_.push_back(std::move(name));
    }
  }
  write(origin, value);
}

void ShardFiller::receive_all() {
  for (;;) {
    auto header = at::empty({2}, at::kLong);
    broadcast(group_, header, /*source=*/0).wait();
    const auto command = static_cast<Command>(header[0].item<std::int64_t>());
    const auto origin =
        static_cast<std::size_t>(header[1].item<std::int64_t>());
    switch (command) {
      case Command::kValue: {
        const auto& tensor = origins_[origin].tensor;
        auto value = at::empty({tensor.numel()}, tensor.options());
        broadcast(group_, value, /*source=*/0).wait();
        write(origin, value);
        break;
      }
      case Command::kPieces:
        gathered(origin);
        break;
      case Command::kDone:
        return;
      case Command::kFailed:
        TORCH_CHECK(false, "[rank ", group_.global_rank(),
                    "] nfold::init failed on rank 0, which computes the "
                    "values; look at its output");
    }
  }
}

void ShardFiller::announce(Command command, std::size_t origin) {
  auto header = at::tensor(
      {static_cast<std::int64_t>(command), static_cast<std::int64_t>(origin)},
      at::kLong);
  broadcast(group_, header, /*source=*/0).wait();
}

void ShardFiller::write(std::size_t origin, const at::Tensor& value) {
  const auto& unit = unit_of(origin);
  const auto param = origins_[origin].address.param;
  unit_of(origin).write_param(param, 0, flat(value));
  if (kept_in(unit).scalar_type() == value.scalar_type()) return;
  const auto piece = owned_piece(unit, param);
  unrounded_[origin] =
      flat(value).narrow(0, piece.param_begin, piece.numel).clone();
}

c10::Storage ShardFiller::load(const c10::Storage& deferred) {
  auto storage = allocate_storage(deferred.nbytes(), deferred.device());
  for (const auto origin : by_storage_.at(storage_impl_of(deferred))) {
    const auto& tensor = origins_[origin].tensor;
    if (role_ == Role::kSends) announce(Command::kPieces, origin);
    tensor_on(storage, tensor).copy_(gathered(origin).view(tensor.sizes()));
  }
  return storage;
}

// What write() kept of it, from all ranks that own a part.
at::Tensor ShardFiller::gathered(std::size_t origin) {
  const auto& unit = unit_of(origin);
  const auto param = origins_[origin].address.param;
  const auto piece = owned_piece(unit, param);
  const auto unrounded = unrounded_.find(origin);
  return gather_pieces(
      unit, param,
      unrounded != unrounded_.end()
          ? unrounded->second
          : kept_in(unit).narrow(0, piece.range_begin, piece.numel));
}

bool ShardFiller::has_experts() const {
  const auto units = model_.all();
  return std::any_of(units.begin(), units.end(), [](const ShardedUnit* unit) {
    return unit->options().groups.experts != nullptr;
  });
}

ShardedUnit& ShardFiller::unit_of(std::size_t origin) {
  return *model_.units()[origins_[origin].address.unit];
}

}  // namespace nfold
