#include "param/tape_writer.h"

#include <c10/core/DefaultDtype.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "param/deferred_history.h"
#include "param/deferred_storage.h"
#include "param/dispatch_fallback.h"
#include "param/tensor_walk.h"

namespace nfold {
namespace {

std::string why_without_memory(const OperatorCall& call, std::size_t nbytes) {
  return c10::str(
      "this tensor's storage (", nbytes, " bytes, ",
      toString(call.op.operator_name()),
      ") has no memory yet: a constructor made it while nfold deferred "
      "construction, and its values are computed later. In the constructor, "
      "read it with operators, item() for instance, or build it inside of a "
      "scope of nfold::ConstructionPause. After the constructor, materialize "
      "the module first.");
}

void add_once(std::vector<std::size_t>& list, std::size_t value) {
  if (std::find(list.begin(), list.end(), value) == list.end()) {
    list.push_back(value);
  }
}

bool covers_storage(const at::Tensor& tensor) {
  return tensor.is_non_overlapping_and_dense() &&
         tensor.nbytes() == tensor.storage().nbytes();
}

// The argument that a result is, as in `add_(Tensor(a!) self, ...) ->
// Tensor(a!)`.
std::optional<std::size_t> returned_argument(const OperatorCall& call,
                                             const c10::Argument& result) {
  const c10::AliasInfo* alias = result.alias_info();
  if (alias == nullptr || !alias->isWrite()) return std::nullopt;
  for (std::size_t i : call.traits.written) {
    const auto* argument = call.op.schema().arguments()[i].alias_info();
    if (argument->beforeSets() == alias->beforeSets()) return i;
  }
  return std::nullopt;
}

}  // namespace

torch::jit::Stack TapeWriter::record(const OperatorCall& call) {
  const bool needs_history = call.needs_history();
  for (const at::Tensor& tensor : call.written_tensors()) {
    check_in_place(tensor, needs_history);
  }
  TapeOperator entry{call.op,
                     twins_.twins_of(call),
                     {},
                     std::nullopt,
                     c10::get_default_dtype_as_scalartype()};
  const InferredCall inferred = twins_.infer(call, entry.arguments);
  follow_geometry(call, inferred);
  torch::jit::Stack results = results_of(call, inferred);
  for (const at::Tensor& result : tensors_of(inferred.results)) {
    entry.results.push_back(tensor_on(result.storage(), result));
  }
  OperatorAccess access = access_of(call, entry);
  seal(call);
  if (call.traits.is_random) {
    entry.draw = tape_.timeline().record(call.generator());
  }
  tape_.add(std::move(entry), std::move(access));
  return results;
}

torch::jit::Stack TapeWriter::infer_results(const OperatorCall& call) {
  return twins_.infer(call, twins_.twins_of(call)).results;
}

void TapeWriter::resize(const OperatorCall& call) {
  follow_geometry(call, twins_.infer(call, twins_.twins_of(call)));
  seal(call);
}

void TapeWriter::defer(const at::Tensor& tensor, const OperatorCall& call) {
  const c10::Storage& storage = tensor.storage();
  c10::Storage memory =
      defer_storage(storage, why_without_memory(call, storage.nbytes()));
  tape_.move_constant(storage, memory);
  tape_.add_deferred(storage, make_twin_storage(storage.nbytes()),
                     std::move(memory));
}

void TapeWriter::keep_constants(const std::vector<at::Tensor>& written) {
  for (const at::Tensor& tensor : written) {
    if (tensor.has_storage() && tape_.refers_to(tensor.storage())) {
      tape_.move_constant(tensor.storage(), copy_storage(tensor.storage()));
    }
  }
}

void TapeWriter::follow_geometry(const OperatorCall& call,
                                 const InferredCall& inferred) {
  const auto before = call.written_tensors();
  const auto after = written_tensors(call.traits, inferred.arguments);
  for (std::size_t i = 0; i < before.size(); ++i) {
    const at::Tensor& tensor = before[i];
    if (!has_geometry(tensor, after[i])) set_geometry(tensor, after[i]);
    tape_.grow(*tape_.find(tensor.storage()), after[i].storage().nbytes());
    if (!tensor.is_inference()) {
      tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
}

torch::jit::Stack TapeWriter::results_of(const OperatorCall& call,
                                         const InferredCall& inferred) {
  const auto source_of_history = [&] {
    const auto all = call.tensors();
    return *std::find_if(all.begin(), all.end(), [](const at::Tensor& tensor) {
      return tensor.requires_grad();
    });
  };
  const std::string& name = call.op.schema().name();
  torch::jit::Stack results;
  const auto& returns = call.op.schema().returns();
  for (std::size_t i = 0; i < returns.size(); ++i) {
    if (const auto argument = returned_argument(call, returns[i])) {
      results.push_back(call.arguments[*argument]);
      continue;
    }
    results.push_back(
        map_tensors(inferred.results[i], [&](const at::Tensor& twin) {
          at::Tensor result = tensor_of(twin, call);
          if (twin.requires_grad()) {
            UnrecordedScope unrecorded;
            give_history(result, source_of_history(), name);
          }
          return result;
        }));
  }
  if (!call.needs_history()) return results;
  for (const at::Tensor& tensor : call.written_tensors()) {
    if (tensor.requires_grad() || !tensor.is_floating_point()) continue;
    UnrecordedScope unrecorded;
    give_in_place_history(tensor, source_of_history(), name);
  }
  return results;
}

at::Tensor TapeWriter::tensor_of(const at::Tensor& twin,
                                 const OperatorCall& call) {
  const auto known = tape_.find_twin(twin.storage());
  const TapeStorage& storage =
      tape_.storages()[known ? *known : add_result(twin, call)];
  return tensor_on(storage.is_constant() ? storage.initial : storage.deferred,
                   twin);
}

StorageId TapeWriter::add_result(const at::Tensor& twin,
                                 const OperatorCall& call) {
  const std::size_t nbytes = twin.storage().nbytes();
  if (call.traits.makes_zeros) {
    auto zeros = make_zero_storage(nbytes, call.result_device(), on_write_);
    if (zeros) {
      const StorageId id =
          tape_.add_deferred(std::move(*zeros), twin.storage());
      tape_.mark_zero(id);
      return id;
    }
  }
  return tape_.add_deferred(
      make_deferred_storage(nbytes, call.result_device(),
                            why_without_memory(call, nbytes)),
      twin.storage());
}

void TapeWriter::seal(const OperatorCall& call) {
  for (const at::Tensor& tensor : call.written_tensors()) {
    const StorageId id = *tape_.find(tensor.storage());
    if (!tape_.storages()[id].is_zero) continue;
    tape_.seal(id, why_without_memory(call, tensor.storage().nbytes()));
  }
}

OperatorAccess TapeWriter::access_of(const OperatorCall& call,
                                     const TapeOperator& entry) const {
  OperatorAccess access;
  for (std::size_t i = 0; i < entry.arguments.size(); ++i) {
    visit_tensors(entry.arguments[i], [&](const at::Tensor& twin) {
      const StorageId id = *tape_.find_twin(twin.storage());
      if (tape_.storages()[id].is_constant()) return;
      const bool is_written = call.traits.writes(i);
      if (is_written) add_once(access.outputs, id);
      if (!is_written || !call.traits.overwrites || !covers_storage(twin)) {
        add_once(access.inputs, id);
      }
    });
  }
  for (const at::Tensor& twin : entry.results) {
    const StorageId id = *tape_.find_twin(twin.storage());
    if (std::find(access.inputs.begin(), access.inputs.end(), id) ==
            access.inputs.end() &&
        !tape_.storages()[id].is_constant()) {
      add_once(access.outputs, id);
    }
  }
  return access;
}

}  // namespace nfold
