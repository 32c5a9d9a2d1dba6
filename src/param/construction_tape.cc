#include "param/construction_tape.h"

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/hash.h"
#include "param/deferred_storage.h"
#include "param/zero_storage.h"

namespace nfold {
namespace {

std::optional<StorageId> look_up(
    const std::unordered_map<const c10::StorageImpl*, StorageId>& map,
    const c10::Storage& storage) {
  const auto found = map.find(storage.unsafeGetStorageImpl());
  if (found == map.end()) return std::nullopt;
  return found->second;
}

constexpr std::size_t kMaxCopiedBytes = std::size_t{1} << 20;

bool is_copied(const c10::Storage& storage) {
  return storage.nbytes() <= kMaxCopiedBytes && storage.device().is_cpu();
}

bool has_values_of(const c10::Storage& a, const c10::Storage& b) {
  if (a.is_alias_of(b)) return true;
  return is_copied(b) && a.nbytes() == b.nbytes() && a.device().is_cpu() &&
         (a.nbytes() == 0 || std::memcmp(a.data(), b.data(), a.nbytes()) == 0);
}

}  // namespace

std::uint64_t ConstructionTape::fingerprint(Kept kept) const {
  Hasher hasher;
  const auto add_ids = [&](const std::vector<std::size_t>& ids) {
    hasher.add_number(static_cast<std::int64_t>(ids.size()));
    for (const auto id : ids) hasher.add_number(static_cast<std::int64_t>(id));
  };
  for (std::size_t i = 0; i < operators_.size(); ++i) {
    hasher.add_text(toString(operators_[i].op.operator_name()));
    hasher.add_number(operators_[i].draw.has_value());
    add_ids(accesses_[i].inputs);
    add_ids(accesses_[i].outputs);
  }
  for (const TapeStorage& storage : storages_) {
    hasher.add_number(static_cast<std::int64_t>(storage.twin.nbytes()));
    if (kept == Kept::kSame) hasher.add_number(storage.is_in_use());
  }
  return hasher.digest();
}

bool ConstructionTape::is_deferred(const at::Tensor& tensor) const {
  if (!tensor.has_storage()) return false;
  const auto id = find(tensor.storage());
  return id && !storages_[*id].is_constant();
}

std::optional<StorageId> ConstructionTape::find(
    const c10::Storage& storage) const {
  return look_up(by_storage_, storage);
}

std::optional<StorageId> ConstructionTape::find_twin(
    const c10::Storage& twin) const {
  return look_up(by_twin_, twin);
}

StorageId ConstructionTape::add_deferred(c10::Storage deferred,
                                         c10::Storage twin,
                                         c10::Storage initial) {
  TapeStorage storage;
  storage.deferred = std::move(deferred);
  storage.twin = std::move(twin);
  storage.initial = std::move(initial);
  storage.version = operators_.size();
  const c10::Storage known_as = storage.deferred;
  return add(std::move(storage), known_as);
}

StorageId ConstructionTape::constant_of(const c10::Storage& storage) {
  if (const auto id = find(storage)) {
    const TapeStorage& known = storages_[*id];
    if (known.is_constant() && has_values_of(known.initial, storage)) {
      return *id;
    }
  }
  TapeStorage constant;
  constant.twin = make_twin_storage(storage.nbytes());
  constant.initial = is_copied(storage) ? copy_storage(storage) : storage;
  return add(std::move(constant), storage);
}

bool ConstructionTape::refers_to(const c10::Storage& storage) const {
  const auto id = find(storage);
  return id && storages_[*id].is_constant() &&
         storages_[*id].initial.is_alias_of(storage);
}

void ConstructionTape::move_constant(const c10::Storage& storage,
                                     c10::Storage values) {
  if (!refers_to(storage)) return;
  storages_[*find(storage)].initial = std::move(values);
  by_storage_.erase(storage.unsafeGetStorageImpl());
}

void ConstructionTape::mark_zero(StorageId id) { storages_[id].is_zero = true; }

void ConstructionTape::seal(StorageId id, std::string why_without_memory) {
  TapeStorage& storage = storages_[id];
  if (!storage.is_zero) return;
  storage.is_zero = false;
  sealed_.push_back(
      seal_zero_storage(storage.deferred, std::move(why_without_memory)));
}

void ConstructionTape::let_go(StorageId id) {
  TapeStorage& storage = storages_[id];
  by_storage_.erase(storage.deferred.unsafeGetStorageImpl());
  storage.is_zero = false;
  storage.deferred =
      make_deferred_storage(storage.deferred.nbytes(),
                            storage.deferred.device(), "a copy on the tape");
}

void ConstructionTape::grow(StorageId id, std::size_t nbytes) {
  TapeStorage& storage = storages_[id];
  storage.deferred.set_nbytes(std::max(storage.deferred.nbytes(), nbytes));
  storage.twin.set_nbytes(std::max(storage.twin.nbytes(), nbytes));
}

void ConstructionTape::add(TapeOperator entry, OperatorAccess access) {
  operators_.push_back(std::move(entry));
  for (StorageId id : access.outputs) storages_[id].version = operators_.size();
  accesses_.push_back(std::move(access));
}

StorageId ConstructionTape::add(TapeStorage storage,
                                const c10::Storage& known_as) {
  const StorageId id = storages_.size();
  by_storage_[known_as.unsafeGetStorageImpl()] = id;
  by_twin_[storage.twin.unsafeGetStorageImpl()] = id;
  storages_.push_back(std::move(storage));
  return id;
}

c10::Storage make_twin_storage(std::size_t nbytes) {
  const c10::Device meta(c10::DeviceType::Meta);
  return c10::Storage(c10::Storage::use_byte_size_t(), nbytes,
                      c10::DataPtr(nullptr, meta),
                      c10::GetAllocator(c10::DeviceType::Meta),
                      /*resizable=*/true);
}

}  // namespace nfold
