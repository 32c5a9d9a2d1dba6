#include "param/operator_traits.h"

#include <ATen/core/enum_tag.h>
#include <ATen/core/jit_type.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace nfold {
namespace {

bool type_holds_tensors(const c10::TypePtr& type) {
  if (type->kind() == c10::TypeKind::TensorType) return true;
  const auto contained = type->containedTypes();
  return std::any_of(contained.begin(), contained.end(), type_holds_tensors);
}

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

// In-place operators whose result does not depend on what was there before.
// Operators with an `out` argument are recognised by their schema.
bool is_overwriting_name(std::string_view name) {
  static const std::unordered_set<std::string_view> names = {
      "aten::bernoulli_",   "aten::cauchy_", "aten::copy_",
      "aten::exponential_", "aten::fill_",   "aten::geometric_",
      "aten::log_normal_",  "aten::normal_", "aten::random_",
      "aten::uniform_",     "aten::zero_"};
  return names.contains(name);
}

bool is_zeros_name(std::string_view name) {
  static const std::unordered_set<std::string_view> names = {
      "aten::empty",     "aten::empty_like", "aten::empty_strided",
      "aten::new_empty", "aten::new_zeros",  "aten::new_empty_strided",
      "aten::zeros",     "aten::zeros_like"};
  return names.contains(name);
}

bool is_resizing_name(std::string_view name) {
  return name == "aten::resize_" || name == "aten::resize_as_";
}

// No backend has a kernel of its own, so the dispatcher runs the one that is
// written in terms of other operators.
bool is_composite(const c10::OperatorHandle& op) {
  return op.hasKernelForDispatchKey(
             c10::DispatchKey::CompositeImplicitAutograd) &&
         !op.hasKernelForDispatchKey(c10::DispatchKey::CPU);
}

void read_arguments(const c10::FunctionSchema& schema, OperatorTraits& traits) {
  for (std::size_t i = 0; i < schema.arguments().size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    if (is_written(argument)) traits.written.push_back(i);
    const std::string_view name = argument.name();
    if (name == "dtype") traits.dtype = i;
    if (name == "layout") traits.layout = i;
    if (name == "device") traits.device = i;
    if (name == "pin_memory") traits.pin_memory = i;
    if (name == "generator") traits.generator = i;
  }
}

OperatorTraits make_traits(const c10::OperatorHandle& op) {
  OperatorTraits traits;
  const c10::FunctionSchema& schema = op.schema();
  const std::string& name = schema.name();
  read_arguments(schema, traits);
  const auto& returns = schema.returns();
  traits.returns_tensors = std::any_of(
      returns.begin(), returns.end(), [](const c10::Argument& result) {
        return type_holds_tensors(result.type());
      });
  const bool only_aliases =
      !returns.empty() && std::all_of(returns.begin(), returns.end(),
                                      [](const c10::Argument& result) {
                                        return result.alias_info() != nullptr;
                                      });
  traits.is_composite = is_composite(op);
  traits.is_view = traits.written.empty() && only_aliases;
  traits.resizes = is_resizing_name(name);
  traits.changes_metadata = op.hasTag(at::Tag::inplace_view) && !traits.resizes;
  traits.is_random =
      op.hasTag(at::Tag::nondeterministic_seeded) || traits.generator;
  traits.makes_zeros = traits.written.empty() && is_zeros_name(name);
  traits.compares_identity = name == "aten::is_set_to";
  traits.overwrites = is_overwriting_name(name) ||
                      (!traits.written.empty() &&
                       std::all_of(traits.written.begin(), traits.written.end(),
                                   [&](std::size_t i) {
                                     return schema.arguments()[i].is_out();
                                   }));
  return traits;
}

}  // namespace

bool OperatorTraits::writes(std::size_t argument) const {
  return std::find(written.begin(), written.end(), argument) != written.end();
}

const OperatorTraits& operator_traits(const c10::OperatorHandle& op) {
  static std::mutex mutex;
  // By name, which outlives a handle.
  static std::unordered_map<c10::OperatorName, std::unique_ptr<OperatorTraits>>
      known;
  std::lock_guard lock(mutex);
  auto& traits = known[op.operator_name()];
  if (!traits) traits = std::make_unique<OperatorTraits>(make_traits(op));
  return *traits;
}

}  // namespace nfold
