#include "param/current_values.h"

#include <algorithm>
#include <optional>
#include <set>

#include "param/deferred_storage.h"
#include "param/tape_replay.h"
#include "param/tensor_walk.h"

namespace nfold {

torch::jit::Stack CurrentValues::substitute(const torch::jit::Stack& arguments,
                                            Use use) {
  const auto id_of = [&](const at::Tensor& tensor) -> std::optional<StorageId> {
    if (!tape_.is_deferred(tensor)) return std::nullopt;
    return tape_.find(tensor.storage());
  };
  std::set<StorageId> ids;
  for (const at::Tensor& tensor : tensors_of(arguments)) {
    if (const auto id = id_of(tensor)) ids.insert(*id);
  }
  compute({ids.begin(), ids.end()});
  std::unordered_map<StorageId, c10::Storage> copies;
  return map_stack(arguments, [&](const at::Tensor& tensor) {
    const auto id = id_of(tensor);
    if (!id) return tensor;
    const c10::Storage& value = values_.at(*id).storage;
    if (use == Use::kRead) return tensor_on(value, tensor);
    c10::Storage& copy = copies[*id];
    if (!copy) copy = copy_storage(value);
    return tensor_on(copy, tensor);
  });
}

void CurrentValues::compute(const std::vector<StorageId>& ids) {
  const auto& storages = tape_.storages();
  const bool is_kept = std::all_of(ids.begin(), ids.end(), [&](StorageId id) {
    const auto found = values_.find(id);
    return found != values_.end() &&
           found->second.version == storages[id].version;
  });
  if (is_kept) return;
  values_.clear();
  const std::vector<c10::Storage> computed = current_values(tape_, ids);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    values_[ids[i]] = {computed[i], storages[ids[i]].version};
  }
}

}  // namespace nfold
