#include "param/param_state.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace nfold {
namespace {

// Bytes from the start of the storage that the tensor's elements span.
std::pair<std::int64_t, std::int64_t> byte_span(const at::Tensor& tensor) {
  std::int64_t last = tensor.storage_offset();
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  const auto item = tensor.element_size();
  return {tensor.storage_offset() * item, (last + 1) * item};
}

// Not is_alias_of(), which looks at the data pointer as well: a parameter whose
// memory comes later has none and would raise.
bool shares_storage(const at::Tensor& a, const at::Tensor& b) {
  return a.storage().unsafeGetStorageImpl() ==
         b.storage().unsafeGetStorageImpl();
}

bool is_same_view(const at::Tensor& a, const at::Tensor& b) {
  return shares_storage(a, b) && a.storage_offset() == b.storage_offset() &&
         a.sizes() == b.sizes() && a.strides() == b.strides() &&
         a.scalar_type() == b.scalar_type();
}

bool overlaps(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0 || !shares_storage(a, b)) return false;
  const auto [a_begin, a_end] = byte_span(a);
  const auto [b_begin, b_end] = byte_span(b);
  return a_begin < b_end && b_begin < a_end;
}

void check_supported(const std::string& name, const at::Tensor& tensor) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      tensor.layout() == at::kStrided, "parameter ", name,
      ": expected a dense tensor but found layout ", tensor.layout(),
      "; convert it with to_dense() before the engine is made");
  TORCH_CHECK_NOT_IMPLEMENTED(tensor.device().is_cpu(), "parameter ", name,
                              ": expected a CPU tensor but found one on ",
                              tensor.device(),
                              "; this version trains on the CPU");
  TORCH_CHECK_NOT_IMPLEMENTED(
      !tensor.requires_grad() || tensor.is_floating_point(), "parameter ", name,
      ": expected a real floating-point dtype but found ",
      tensor.scalar_type());
}

}  // namespace

Placement placement_in(const torch::nn::Module& module,
                       const std::string& name) {
  Placement placement;
  if (const auto* placed = dynamic_cast<const PlacedModule*>(&module)) {
    placement = placed->placement_of(name);
  }
  const auto dot = name.find('.');
  if (dot == std::string::npos) return placement;
  const auto children = module.named_children();
  const auto* child = children.find(name.substr(0, dot));
  return child
             ? combined(placement, placement_in(**child, name.substr(dot + 1)))
             : placement;
}

std::vector<ParamState> collect_params(const torch::nn::Module& module) {
  std::vector<ParamState> params;
  for (const auto& item : module.named_parameters(/*recurse=*/true)) {
    const auto& name = item.key();
    const auto& tensor = item.value();
    if (!tensor.defined()) continue;
    check_supported(name, tensor);
    const auto placement = placement_in(module, name);
    const auto twin = std::find_if(
        params.begin(), params.end(), [&](const ParamState& param) {
          return std::any_of(param.tensors.begin(), param.tensors.end(),
                             [&](const at::Tensor& other) {
                               return other.is_same(tensor);
                             }) ||
                 (tensor.numel() > 0 && is_same_view(param.tensor(), tensor));
        });
    if (twin != params.end()) {
      twin->names.push_back(name);
      const bool is_new = std::none_of(
          twin->tensors.begin(), twin->tensors.end(),
          [&](const at::Tensor& other) { return other.is_same(tensor); });
      TORCH_CHECK_VALUE(
          !is_new || tensor.requires_grad() == twin->tensor().requires_grad(),
          "parameters ", twin->name, " and ", name,
          " are tied, but only one of them requires a gradient; set "
          "requires_grad alike on both");
      TORCH_CHECK_VALUE(
          placement == twin->placement, "parameters ", twin->name, " and ",
          name,
          " are tied, but their modules place them on different ranks "
          "(PlacedModule::placement_of); tie them inside of one module, or not "
          "at all");
      if (is_new) twin->tensors.push_back(tensor);
      continue;
    }
    for (const auto& param : params) {
      TORCH_CHECK_VALUE(!overlaps(param.tensor(), tensor), "parameters ",
                        param.name, " and ", name,
                        " share memory but are not the same tensor; tie them "
                        "as one parameter, or clone one of them");
    }
    params.push_back({name, {name}, {tensor}, placement});
  }
  return params;
}

}  // namespace nfold
