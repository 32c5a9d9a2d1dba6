#include <c10/util/Exception.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "config/base64.h"
#include "config/config_key.h"
#include "nfold/config.h"
#include "nfold/strict_json.h"

namespace nfold {
namespace {

using Json = nlohmann::ordered_json;

Config read_document(const JsonDocument& document) {
  Config config = Config::from_json_object(document.root());
  document.raise_if_violated();
  const auto& notes = document.notes();
  config.notes.insert(config.notes.end(), notes.begin(), notes.end());
  return config;
}

// Whether the key, and not only one of its values, is lacking.
bool is_unavailable(const ConfigKey& key) {
  const auto& rows = unavailable_keys();
  return std::any_of(rows.begin(), rows.end(), [&](const Unavailable& row) {
    return row.path == key.path && row.applies == nullptr;
  });
}

}  // namespace

Config Config::from_json_file(const std::string& path) {
  return read_document(JsonDocument::from_file(path));
}

Config Config::from_json_text(std::string_view text,
                              std::string_view source_name) {
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  const bool may_be_json =
      begin == std::string_view::npos ||
      // A byte order mark counts as the start of a text.
      std::string_view("{[\"/\xef").find(text[begin]) != std::string_view::npos;
  if (!may_be_json) {
    const auto decoded = decode_base64(text);
    TORCH_CHECK_VALUE(decoded, source_name,
                      ": expected a JSON object in braces, or one in base64, "
                      "but found neither");
    return read_document(JsonDocument::from_text(*decoded, source_name));
  }
  return read_document(JsonDocument::from_text(text, source_name));
}

std::string Config::to_json_text() const {
  Json root = Json::object();
  const Config defaults;
  for (const ConfigKey& key : config_keys()) {
    if (!has_key(*this, key)) continue;
    const std::string text = value_text(*this, key);
    if (text == "null") continue;
    const bool is_effective =
        key.status == KeyStatus::kHonoured && !is_unavailable(key);
    if (!is_effective && text == value_text(defaults, key)) continue;
    Json* node = &root;
    std::size_t begin = 0;
    for (std::size_t dot = key.path.find('.'); dot != std::string_view::npos;
         dot = key.path.find('.', begin)) {
      node = &(*node)[std::string(key.path.substr(begin, dot - begin))];
      begin = dot + 1;
    }
    (*node)[std::string(key.path.substr(begin))] = Json::parse(text);
  }
  return root.dump(2) + "\n";
}

}  // namespace nfold
