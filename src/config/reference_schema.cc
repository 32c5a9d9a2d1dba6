#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "config/config_key.h"
#include "config/reference.h"

namespace nfold {
namespace {

using Json = nlohmann::ordered_json;

Json number_schema(std::string_view type, const JsonRange& range) {
  Json schema = {{"type", type}};
  if (std::isfinite(range.least)) {
    schema[range.least_is_open ? "exclusiveMinimum" : "minimum"] = range.least;
  }
  if (std::isfinite(range.most)) {
    schema[range.most_is_open ? "exclusiveMaximum" : "maximum"] = range.most;
  }
  return schema;
}

template <typename T>
Json field_schema(T* /*tag*/, const JsonRange& range) {
  if constexpr (std::is_same_v<T, bool>) {
    return {{"type", "boolean"}};
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return number_schema("integer", range);
  } else if constexpr (std::is_same_v<T, double>) {
    return number_schema("number", range);
  } else if constexpr (std::is_same_v<T, std::string>) {
    return {{"type", "string"}};
  } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
    return {{"type", "array"}, {"items", {{"type", "string"}}}};
  } else if constexpr (std::is_same_v<T, std::array<double, 2>>) {
    return {{"type", "array"},
            {"items", number_schema("number", range)},
            {"minItems", 2},
            {"maxItems", 2}};
  } else if constexpr (std::is_same_v<T, at::ScalarType>) {
    return {{"enum", {"fp32", "fp16", "bf16"}}};
  } else {
    Json names = Json::array();
    for (std::string_view name : names_of(T{})) {
      const std::string written(name);
      std::string lower = written;
      for (char& letter : lower) {
        letter =
            static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
      }
      names.push_back(written);
      if (lower != written) names.push_back(std::move(lower));
    }
    return {{"enum", names}};
  }
}

template <typename T>
Json field_schema(std::optional<T>* /*tag*/, const JsonRange& range) {
  return {
      {"anyOf",
       {field_schema(static_cast<T*>(nullptr), range), {{"type", "null"}}}}};
}

Json key_schema(const ConfigKey& key) {
  Json value = std::visit(
      [&](auto field) -> Json {
        if constexpr (std::is_same_v<decltype(field), std::monostate>) {
          return Json::object();
        } else {
          using T =
              std::remove_reference_t<decltype(field(std::declval<Config&>()))>;
          return field_schema(static_cast<T*>(nullptr), key.range);
        }
      },
      key.field);
  Json schema = {{"description", key.effect}};
  if (!value.empty()) {
    schema["anyOf"] = Json::array({std::move(value), {{"const", "auto"}}});
  }
  Config defaults;
  if (has_key(defaults, key)) {
    schema["default"] = Json::parse(value_text(defaults, key));
  }
  return schema;
}

// The schema of the section, made on the way.
Json& section_schema(Json& root, std::string_view path) {
  if (path.empty()) return root;
  Json& outer = section_schema(root, section_of(path));
  Json& section = outer["properties"][std::string(leaf_of(path))];
  if (section.is_null()) {
    section = {{"type", {"object", "null"}},
               {"additionalProperties", false},
               {"properties", Json::object()}};
  }
  return section;
}

}  // namespace

std::string reference_schema() {
  Json root = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
               {"title", "nfold engine configuration"},
               {"type", "object"},
               {"additionalProperties", false},
               {"properties", Json::object()}};
  for (const ConfigKey& key : config_keys()) {
    Json& section = section_schema(root, section_of(key.path));
    section["properties"][std::string(leaf_of(key.path))] = key_schema(key);
  }
  for (const KeyAlias& alias : key_aliases()) {
    Json& section = section_schema(root, section_of(alias.path));
    Json schema = section["properties"][std::string(leaf_of(alias.path))];
    schema["deprecated"] = alias.is_deprecated;
    section["properties"][std::string(alias.name)] = std::move(schema);
  }
  Json bf16 = root["properties"]["bf16"];
  root["properties"]["bfloat16"] = std::move(bf16);
  return root.dump(2) + "\n";
}

}  // namespace nfold
