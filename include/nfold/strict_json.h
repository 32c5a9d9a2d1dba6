// File: nfold/strict_json.h
//
// Reads JSON objects field by field and reports everything that is wrong with a
// text at once. Nothing is taken on trust: a key nobody asked for, a key given
// twice, a number out of range and a value of another type are violations, each
// with the path of the key.
//
//   auto document = nfold::JsonDocument::from_file("run.json");
//   document.set("train.steps=100");                 // from a command line
//   nfold::JsonObject train = document.root().object("train");
//   std::int64_t steps = 1000;                       // stays if absent
//   train.read("steps", steps, {.least = 1});
//   train.finish();                                  // no other keys
//   document.root().finish();
//   document.raise_if_violated();                    // c10::ValueError
//
// What counts as absent: a missing key, and the text "auto", which is noted.
// null counts as absent where the target is a std::optional or an object.
// Comments in the text are skipped. Integers may be written 5e8.
//
// Copies of a JsonObject are the same reader. Not thread-safe.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nfold {

// The numbers a key accepts. An open end is itself not among them.
struct JsonRange {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool least_is_open = false;
  bool most_is_open = false;

  bool holds(double value) const;
  // "an integer from 0 to 3", "a number above 0".
  std::string describe(std::string_view noun) const;
};

class JsonObject {
 public:
  // Names from the root, as in "engine.fp16"; empty for the root.
  const std::string& path() const;
  std::string path_of(std::string_view key) const;

  // Whether the key is given, and not "auto".
  bool has(std::string_view key) const;
  // All keys in the order of the text.
  std::vector<std::string> keys() const;

  // Each stores the value of `key` and returns true, or leaves `value` alone
  // and returns false: when the key is absent, and, adding a violation, when
  // its value does not fit.
  bool read(std::string_view key, bool& value);
  bool read(std::string_view key, std::int64_t& value, JsonRange range = {});
  bool read(std::string_view key, double& value, JsonRange range = {});
  bool read(std::string_view key, std::string& value);
  // A single text is a list of one.
  bool read(std::string_view key, std::vector<std::string>& value);
  bool read(std::string_view key, std::vector<double>& value,
            JsonRange range = {});
  bool read(std::string_view key, std::vector<std::int64_t>& value,
            JsonRange range = {});
  template <typename T, typename... Range>
  bool read(std::string_view key, std::optional<T>& value, Range... range) {
    if (read_null(key)) {
      value.reset();
      return true;
    }
    T given{};
    if (!read(key, given, range...)) return false;
    value = std::move(given);
    return true;
  }

  // The place of the value among `names`, without regard to case.
  std::optional<std::size_t> read_choice(
      std::string_view key, std::span<const std::string_view> names);

  // The object at `key`; an empty one if absent. Call finish() on it.
  JsonObject object(std::string_view key);
  // The objects of the array at `key`.
  std::vector<JsonObject> objects(std::string_view key);
  // The JSON text of the value, whatever it is.
  std::optional<std::string> raw(std::string_view key);
  // The JSON text of this object.
  std::string to_text() const;

  // Adds a violation if the key is absent.
  void require(std::string_view key);
  // Adds "path.key: text". The text says what was expected and what was found.
  // An empty key means this object itself.
  void violation(std::string_view key, std::string_view text);
  // The same for what is right but not available in this version.
  void unsupported(std::string_view key, std::string_view text);

  // Adds a violation for each key that nobody asked for; it names the nearest
  // keys that were asked for. `elsewhere` are paths from the root: those whose
  // last part is such a key are named as where it may belong.
  void finish(std::span<const std::string> elsewhere = {});

 private:
  friend class JsonDocument;
  struct Impl;
  explicit JsonObject(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
  bool read_null(std::string_view key);

  std::shared_ptr<Impl> impl_;
};

class JsonDocument {
 public:
  // `source_name` is how errors call the text. Raises c10::ValueError for a
  // text that is not a JSON object; keys that are given twice are violations.
  static JsonDocument from_text(std::string_view text,
                                std::string_view source_name);
  // Raises IoError when the file cannot be read.
  static JsonDocument from_file(const std::string& path);

  // Applies an override "a.b.c=value", making objects on the way. To be called
  // before root(), as it invalidates readers. The value is JSON if it can be
  // read as such, else a text. Raises c10::ValueError for an assignment that
  // has no name or runs through a value that is no object.
  void set(std::string_view assignment);

  // One reader, however often it is called.
  JsonObject root() const;
  std::string to_text() const;

  bool is_violated() const;
  // Raises every violation found so far in one error: c10::NotImplementedError
  // if all of them are of the kind unsupported, else c10::ValueError.
  void raise_if_violated() const;
  // One line for each value "auto" that was taken as the default.
  const std::vector<std::string>& notes() const;

 private:
  struct State;
  friend class JsonObject;
  explicit JsonDocument(std::shared_ptr<State> state)
      : state_(std::move(state)) {}

  std::shared_ptr<State> state_;
};

}  // namespace nfold
