#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "checkpoint/match_weights.h"
#include "nfold/checkpoint.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

bool is_tied(const at::Tensor& a, const at::Tensor& b) {
  if (a.is_same(b)) return true;
  return a.numel() > 0 && a.has_storage() && b.has_storage() &&
         a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.strides() == b.strides() && a.const_data_ptr() == b.const_data_ptr();
}

std::vector<WeightTarget> tensors_of(const torch::nn::Module& module) {
  std::vector<WeightTarget> result;
  std::multimap<const void*, std::size_t> by_data;
  auto add = [&](const std::string& name, const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    const void* data = tensor.const_data_ptr();
    const auto [first, last] = by_data.equal_range(data);
    for (auto it = first; it != last; ++it) {
      if (is_tied(result[it->second].tensor, tensor)) {
        result[it->second].names.push_back(name);
        return;
      }
    }
    by_data.emplace(data, result.size());
    result.push_back({{name}, tensor});
  };
  for (const auto& item : module.named_parameters()) {
    add(item.key(), item.value());
  }
  for (const auto& item : module.named_buffers()) {
    add(item.key(), item.value());
  }
  return result;
}

std::map<std::string, std::string> aliases_of(const SafetensorsContent& file,
                                              const std::string& path) {
  const auto found = file.metadata.find(kAliasesKey);
  if (found == file.metadata.end()) return {};
  const auto json = nlohmann::json::parse(found->second, nullptr,
                                          /*allow_exceptions=*/false);
  std::map<std::string, std::string> result;
  bool is_valid = json.is_object();
  if (is_valid) {
    for (const auto& [alias, name] : json.items()) {
      is_valid &= name.is_string();
      if (name.is_string()) result[alias] = name.get<std::string>();
    }
  }
  NFOLD_CHECK_IO(is_valid, path, ": the metadata \"", kAliasesKey,
                 "\" must be a JSON object of strings.");
  return result;
}

std::string text_of(const at::Tensor& tensor) {
  std::ostringstream out;
  out << tensor.scalar_type() << tensor.sizes();
  return out.str();
}

bool is_loadable(const at::Tensor& to, const at::Tensor& from) {
  // Module::to(dtype) makes counters floating-point too.
  const bool is_convertible = to.scalar_type() == from.scalar_type() ||
                              (to.is_floating_point() && !from.is_complex());
  return is_convertible && to.sizes() == from.sizes();
}

}  // namespace

void save_weights(const torch::nn::Module& module, const std::string& path,
                  std::map<std::string, std::string> metadata) {
  NamedTensors tensors;
  nlohmann::json aliases = nlohmann::json::object();
  for (const WeightTarget& item : tensors_of(module)) {
    tensors.emplace_back(item.names[0], item.tensor);
    for (std::size_t i = 1; i < item.names.size(); ++i) {
      aliases[item.names[i]] = item.names[0];
    }
  }
  if (!aliases.empty()) metadata[kAliasesKey] = aliases.dump();
  // Software built on Hugging Face's libraries refuses files without it.
  metadata.emplace("format", "pt");
  save_safetensors(path, tensors, metadata);
}

std::vector<at::Tensor> match_weights(const std::vector<WeightTarget>& targets,
                                      const std::string& path) {
  const SafetensorsContent file = load_safetensors(path);
  std::map<std::string, at::Tensor> in_file(file.tensors.begin(),
                                            file.tensors.end());
  for (const auto& [alias, name] : aliases_of(file, path)) {
    const auto target = in_file.find(name);
    NFOLD_CHECK_IO(target != in_file.end(), path, ": \"", alias,
                   "\" is said to be the same as \"", name,
                   "\", which the file does not hold.");
    in_file.emplace(alias, target->second);
  }

  std::ostringstream problems;
  std::vector<at::Tensor> sources;
  std::map<std::string, at::Tensor> unused = in_file;
  for (const WeightTarget& item : targets) {
    at::Tensor source;
    for (const std::string& name : item.names) {
      unused.erase(name);
      const auto found = in_file.find(name);
      if (found == in_file.end()) continue;
      if (!is_loadable(item.tensor, found->second)) {
        problems << "\n  mismatch: " << name << " is " << text_of(item.tensor)
                 << " in the model, " << text_of(found->second)
                 << " in the file";
      } else if (source.defined() && !is_tied(source, found->second) &&
                 !at::equal(source, found->second)) {
        problems << "\n  mismatch: " << name << " is tied to " << item.names[0]
                 << " in the model, but has other values in "
                 << "the file";
      }
      source = found->second;
    }
    if (!source.defined()) {
      problems << "\n  missing: " << item.names[0] << ", "
               << text_of(item.tensor);
    }
    sources.push_back(std::move(source));
  }
  for (const auto& [name, tensor] : unused) {
    problems << "\n  unexpected: " << name << ", " << text_of(tensor);
  }
  TORCH_CHECK_VALUE(problems.str().empty(), path,
                    ": the weights do not fit the model; nothing was changed. "
                    "Was the file saved with another configuration?",
                    problems.str());
  return sources;
}

void load_weights(torch::nn::Module& module, const std::string& path) {
  const auto targets = tensors_of(module);
  const auto sources = match_weights(targets, path);
  at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    targets[i].tensor.copy_(sources[i]);
  }
}

}  // namespace nfold
