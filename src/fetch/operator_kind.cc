#include "fetch/operator_kind.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
#include <unordered_set>

namespace nfold {
namespace {

// Operators that take a tensor for its sizes, dtype or place in a graph.
bool reads_metadata_only(const std::string& name) {
  static const std::unordered_set<std::string_view> names{
      "aten::empty_like",
      "aten::zeros_like",
      "aten::ones_like",
      "aten::full_like",
      "aten::rand_like",
      "aten::randn_like",
      "aten::randint_like",
      "aten::new_empty",
      "aten::new_zeros",
      "aten::new_ones",
      "aten::new_full",
      "aten::new_empty_strided",
      "aten::size",
      "aten::stride",
      "aten::sym_size",
      "aten::sym_stride",
      "aten::sym_numel",
      "aten::numel",
      "aten::dim",
      "aten::is_same_size",
      "aten::is_leaf",
      "aten::output_nr",
      "aten::_version",
      "aten::requires_grad_",
      "aten::retain_grad",
      "aten::retains_grad",
      "aten::data",
      "aten::result_type",
      "aten::can_cast",
      "aten::is_floating_point",
      "aten::is_complex",
      "aten::is_signed",
      "aten::is_contiguous",
      "aten::sym_storage_offset",
      "aten::storage_offset",
      "aten::_is_zerotensor",
      "aten::is_conj",
      "aten::is_neg",
      "aten::is_inference",
      "aten::resolve_conj",
      "aten::resolve_neg"};
  return names.count(name) > 0;
}

bool replaces_data(const std::string& name) {
  static const std::unordered_set<std::string_view> names{
      "aten::set_data", "aten::set_", "aten::resize_", "aten::resize_as_",
      "aten::detach_"};
  return names.count(name) > 0;
}

// Every result is a view of an argument, and nothing is written.
bool only_aliases(const c10::FunctionSchema& schema) {
  const auto& returns = schema.returns();
  const auto is_alias = [](const c10::Argument& argument) {
    return argument.alias_info() && !argument.alias_info()->isWrite();
  };
  return !returns.empty() &&
         std::all_of(returns.begin(), returns.end(), is_alias) &&
         !schema.is_mutable();
}

}  // namespace

OperatorKind operator_kind(const c10::OperatorHandle& op) {
  const auto& schema = op.schema();
  const auto& name = schema.name();
  if (name.rfind("aten::", 0) != 0) return OperatorKind::kForeign;
  if (replaces_data(name)) return OperatorKind::kReplaceData;
  if (reads_metadata_only(name)) return OperatorKind::kMetadata;
  if (!only_aliases(schema)) return OperatorKind::kCompute;
  return op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)
             ? OperatorKind::kMayCopy
             : OperatorKind::kMetadata;
}

OperatorKind cached_operator_kind(const c10::OperatorHandle& op) {
  // An operator keeps its schema, and so its address, for as long as it is
  // registered. One slot for all schemas with the same hash: a program uses
  // some dozens of operators, and a miss costs little.
  struct Slot {
    const c10::FunctionSchema* schema = nullptr;
    OperatorKind kind = OperatorKind::kCompute;
  };
  constexpr std::size_t kNumSlots = 1024;
  thread_local std::array<Slot, kNumSlots> slots{};
  const auto* schema = &op.schema();
  const auto address = reinterpret_cast<std::uintptr_t>(schema);
  auto& slot = slots[(address >> 4 ^ address >> 14) % kNumSlots];
  if (slot.schema != schema) slot = {schema, operator_kind(op)};
  return slot.kind;
}

}  // namespace nfold
