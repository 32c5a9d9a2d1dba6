// File: json_state.h
//
// What JsonDocument and JsonObject hold; only their sources include this.
//
// A document's state owns the parsed text and one reader per object of it, as a
// tree. Handles share the state, so that readers may outlive the document.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nfold/strict_json.h"

namespace nfold {

// Keeps the order of the text, which errors and effective files show.
using Json = nlohmann::ordered_json;

struct Violation {
  std::string text;
  bool is_unsupported = false;
};

// A value as errors quote it: one line, cut off where it gets long.
std::string shown(const Json& value);

// "path.key"; only one of the two if the other is empty.
std::string joined(std::string_view path, std::string_view key);

struct JsonDocument::State {
  std::string source;
  Json root;
  std::vector<Violation> violations;
  std::vector<std::string> notes;
  // Owns all readers, which point back here; handles share this state.
  std::shared_ptr<JsonObject::Impl> root_reader;

  void note_once(std::string text) {
    if (std::find(notes.begin(), notes.end(), text) == notes.end()) {
      notes.push_back(std::move(text));
    }
  }
};

struct JsonObject::Impl {
  JsonDocument::State* state = nullptr;
  const Json* node = nullptr;  // null: an absent object
  std::string path;
  std::vector<std::string> known;
  std::vector<std::pair<std::string, std::shared_ptr<Impl>>> children;

  // The value of the key; null if it is absent or "auto".
  const Json* given(std::string_view key) const;
  // The same, and remembers that somebody asked for the key.
  const Json* ask(std::string_view key);

  void add(std::string_view key, std::string_view text, bool is_unsupported);
  void mismatch(std::string_view key, std::string_view expected,
                const Json& found);

  // Each stores what fits and returns true, or adds a violation.
  bool convert(std::string_view key, const Json& value, bool& out,
               JsonRange range);
  bool convert(std::string_view key, const Json& value, std::int64_t& out,
               JsonRange range);
  bool convert(std::string_view key, const Json& value, double& out,
               JsonRange range);
  bool convert(std::string_view key, const Json& value, std::string& out,
               JsonRange range);
  template <typename T>
  bool convert(std::string_view key, const Json& value, std::vector<T>& out,
               JsonRange range);

  template <typename T>
  bool read(std::string_view key, T& out, JsonRange range = {}) {
    const Json* value = ask(key);
    return value != nullptr && convert(key, *value, out, range);
  }

  // The reader of an object in this one, the same at every call.
  Impl* child(std::string name, const Json* value);
};

}  // namespace nfold
