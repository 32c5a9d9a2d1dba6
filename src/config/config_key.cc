#include "config/config_key.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <nlohmann/json.hpp>
#include <type_traits>

namespace nfold {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kOffloadDevices[] = {"none", "cpu", "nvme"};
constexpr std::string_view kReduceOps[] = {"mean", "sum"};
constexpr std::string_view kTagValidations[] = {"Ignore", "Warn", "Fail"};
constexpr std::string_view kWarmupTypes[] = {"log", "linear"};
constexpr std::string_view kOptimizers[] = {"Adam", "AdamW", "Adagrad",
                                            "Lion", "SGD",   "RMSprop"};
constexpr std::string_view kSchedulers[] = {
    "LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR", "WarmupCosineLR"};

struct DtypeName {
  std::string_view name;
  at::ScalarType dtype;
};
constexpr DtypeName kDtypes[] = {
    {"fp32", at::kFloat},
    {"float32", at::kFloat},
    {"float", at::kFloat},
    {"torch.float32", at::kFloat},
    {"fp16", at::kHalf},
    {"float16", at::kHalf},
    {"half", at::kHalf},
    {"torch.float16", at::kHalf},
    {"bf16", at::kBFloat16},
    {"bfloat16", at::kBFloat16},
    {"torch.bfloat16", at::kBFloat16},
};

template <typename T>
Json to_json(const T& value) {
  if constexpr (std::is_same_v<T, at::ScalarType>) {
    return Json(std::string(dtype_name(value)));
  } else if constexpr (std::is_enum_v<T>) {
    return Json(std::string(name_of(value)));
  } else {
    return Json(value);
  }
}

template <typename T>
Json to_json(const std::optional<T>& value) {
  return value ? to_json(*value) : Json(nullptr);
}

std::string listed(std::span<const std::string_view> names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? " or " : ", ";
    text += names[i];
  }
  return text;
}

template <typename T>
std::string type_name(T* /*tag*/, const JsonRange& range) {
  if constexpr (std::is_same_v<T, bool>) {
    return "true or false";
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return range.describe("integer");
  } else if constexpr (std::is_same_v<T, double>) {
    return range.describe("number");
  } else if constexpr (std::is_same_v<T, std::string>) {
    return "text";
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    return "list of texts";
  } else if constexpr (std::is_same_v<T, std::array<double, 2>>) {
    return "two of: " + range.describe("number");
  } else if constexpr (std::is_same_v<T, at::ScalarType>) {
    return "fp32, fp16 or bf16";
  } else {
    return listed(names_of(T{}));
  }
}

template <typename T>
std::string type_name(std::optional<T>* /*tag*/, const JsonRange& range) {
  return type_name(static_cast<T*>(nullptr), range);
}

template <typename Keys>
void append(std::vector<ConfigKey>& all, Keys keys) {
  std::move(keys.begin(), keys.end(), std::back_inserter(all));
}

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = [] {
    std::vector<ConfigKey> all;
    append(all, engine_keys());
    append(all, zero_keys());
    append(all, optimizer_keys());
    append(all, scheduler_keys());
    append(all, service_keys());
    return all;
  }();
  return keys;
}

const ConfigKey* find_config_key(std::string_view path) {
  for (const ConfigKey& key : config_keys()) {
    if (key.path == path) return &key;
  }
  return nullptr;
}

std::span<const std::string_view> names_of(OffloadDevice) {
  return kOffloadDevices;
}
std::span<const std::string_view> names_of(GradientReduceOp) {
  return kReduceOps;
}
std::span<const std::string_view> names_of(TagValidation) {
  return kTagValidations;
}
std::span<const std::string_view> names_of(WarmupType) { return kWarmupTypes; }
std::span<const std::string_view> names_of(OptimizerType) {
  return kOptimizers;
}
std::span<const std::string_view> names_of(SchedulerType) {
  return kSchedulers;
}

std::optional<at::ScalarType> dtype_of(std::string_view name) {
  std::string lower(name);
  for (char& letter : lower) {
    letter =
        static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  for (const DtypeName& entry : kDtypes) {
    if (entry.name == lower) return entry.dtype;
  }
  return std::nullopt;
}

std::string_view dtype_name(at::ScalarType dtype) {
  for (const DtypeName& entry : kDtypes) {
    if (entry.dtype == dtype) return entry.name;
  }
  return c10::toString(dtype);
}

std::string_view section_of(std::string_view path) {
  const std::size_t dot = path.rfind('.');
  return dot == std::string_view::npos ? "" : path.substr(0, dot);
}

std::string_view leaf_of(std::string_view path) {
  return path.substr(path.rfind('.') + 1);
}

bool has_key(const Config& config, const ConfigKey& key) {
  if (std::holds_alternative<std::monostate>(key.field)) return false;
  if (key.path.starts_with("optimizer.")) {
    return config.optimizer && (key.owners & types(config.optimizer->type));
  }
  if (key.path.starts_with("scheduler.")) {
    return config.scheduler && (key.owners & types(config.scheduler->type));
  }
  return true;
}

std::string value_text(const Config& config, const ConfigKey& key) {
  // The table's accessors give writable fields.
  Config copy = config;
  return std::visit(
      [&](auto field) -> std::string {
        if constexpr (std::is_same_v<decltype(field), std::monostate>) {
          return "null";
        } else {
          return to_json(field(copy)).dump();
        }
      },
      key.field);
}

std::string type_text(const ConfigKey& key) {
  return std::visit(
      [&](auto field) -> std::string {
        if constexpr (std::is_same_v<decltype(field), std::monostate>) {
          return "any";
        } else {
          using T =
              std::remove_reference_t<decltype(field(std::declval<Config&>()))>;
          return type_name(static_cast<T*>(nullptr), key.range);
        }
      },
      key.field);
}

}  // namespace nfold
