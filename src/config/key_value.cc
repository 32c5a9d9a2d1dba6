#include "config/key_value.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <type_traits>

namespace nfold {
namespace {

void remove_repeats(std::vector<std::string>& items) {
  std::set<std::string> seen;
  std::erase_if(items, [&](const std::string& item) {
    return !seen.insert(item).second;
  });
}

// DeepSpeed takes "3" for 3 here, and only here.
bool read_quoted(JsonObject& object, const std::string& name, double& value) {
  const auto raw = object.raw(name);
  if (!raw || raw->size() < 3 || raw->front() != '"') return false;
  const auto number =
      nlohmann::json::parse(raw->substr(1, raw->size() - 2), nullptr,
                            /*allow_exceptions=*/false);
  if (!number.is_number() || number.get<double>() < 0) return false;
  value = number.get<double>();
  return true;
}

bool read_dtype(JsonObject& object, const std::string& name,
                at::ScalarType& value) {
  const auto raw = object.raw(name);
  if (!raw) return false;
  std::optional<at::ScalarType> dtype;
  if (raw->front() == '"') dtype = dtype_of(raw->substr(1, raw->size() - 2));
  if (dtype) {
    value = *dtype;
    return true;
  }
  object.violation(name, fmt::format("expected fp32, fp16 or bf16 but found "
                                     "{}",
                                     *raw));
  return false;
}

bool read_pair(JsonObject& object, const std::string& name, JsonRange range,
               std::array<double, 2>& value) {
  std::vector<double> items;
  if (!object.read(name, items, range)) return false;
  if (items.size() != 2) {
    object.violation(name, fmt::format("expected a list of 2 numbers but found "
                                       "{} of them",
                                       items.size()));
    return false;
  }
  value = {items[0], items[1]};
  return true;
}

// Returns whether the key had a value that fits.
template <typename T>
bool read_field(JsonObject& object, const std::string& name,
                const ConfigKey& key, T& value) {
  if constexpr (std::is_same_v<T, at::ScalarType>) {
    return read_dtype(object, name, value);
  } else if constexpr (std::is_same_v<T, std::optional<at::ScalarType>>) {
    at::ScalarType dtype = at::kFloat;
    if (object.raw(name) == "null" || !read_dtype(object, name, dtype)) {
      return false;
    }
    value = dtype;
    return true;
  } else if constexpr (std::is_enum_v<T>) {
    if (std::is_same_v<T, OffloadDevice> && object.raw(name) == "null") {
      return false;
    }
    const auto index = object.read_choice(name, names_of(value));
    if (index) value = static_cast<T>(*index);
    return index.has_value();
  } else if constexpr (std::is_same_v<T, std::array<double, 2>>) {
    return read_pair(object, name, key.range, value);
  } else if constexpr (std::is_same_v<T, bool> ||
                       std::is_same_v<T, std::optional<bool>>) {
    return object.read(name, value);
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    const bool was_read = object.read(name, value);
    remove_repeats(value);
    return was_read;
  } else if constexpr (std::is_same_v<T, std::string> ||
                       std::is_same_v<T, std::optional<std::string>>) {
    return object.read(name, value);
  } else {
    if constexpr (std::is_same_v<T, double>) {
      if (key.path == "fp16.loss_scale" && read_quoted(object, name, value)) {
        return true;
      }
    }
    return object.read(name, value, key.range);
  }
}

}  // namespace

bool read_value(JsonObject& section, const std::string& name,
                const ConfigKey& key, Config& config) {
  return std::visit(
      [&](auto field) {
        if constexpr (std::is_same_v<decltype(field), std::monostate>) {
          TORCH_INTERNAL_ASSERT(false, key.path, " has no field");
          return false;
        } else {
          return read_field(section, name, key, field(config));
        }
      },
      key.field);
}

}  // namespace nfold
