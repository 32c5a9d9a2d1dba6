#include "nfold/strict_json.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "config/nearest_key.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

// Keeps the order of the text, which errors and effective files show.
using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxShown = 60;

struct Violation {
  std::string text;
  bool is_unsupported = false;
};

std::string shown(const Json& value) {
  std::string text =
      value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  if (value.is_string()) return "the text " + text;
  return text;
}

std::string joined(std::string_view path, std::string_view key) {
  if (path.empty()) return std::string(key);
  if (key.empty()) return std::string(path);
  return fmt::format("{}.{}", path, key);
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i > 0) text += i + 1 == names.size() ? " or " : ", ";
    text += names[i];
  }
  return text;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& letter : result) {
    letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return result;
}

// A whole number that fits, however it was written: 500, 5e2, 500.0.
std::optional<std::int64_t> integer_of(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(
                     std::numeric_limits<std::int64_t>::max())) {
      return std::nullopt;
    }
    return static_cast<std::int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const double number = value.get<double>();
  // 2^63 itself is the first double above the range.
  constexpr double kEnd = 9223372036854775808.0;
  if (!(number >= -kEnd && number < kEnd) || std::trunc(number) != number) {
    return std::nullopt;
  }
  return static_cast<std::int64_t>(number);
}

// Collects, while the text is parsed, where a key appears twice in an object.
class DuplicateFinder {
 public:
  bool operator()(int /*depth*/, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    switch (event) {
      case Event::object_start:
      case Event::array_start:
        open_.push_back({child_path(), {}, event == Event::array_start, 0});
        break;
      case Event::key: {
        auto key = parsed.get<std::string>();
        if (!open_.back().keys.insert(key).second) {
          duplicates_.push_back(joined(open_.back().path, key));
        }
        open_.back().current = std::move(key);
        break;
      }
      case Event::object_end:
      case Event::array_end:
        open_.pop_back();
        count_element();
        break;
      case Event::value:
        count_element();
        break;
    }
    return true;
  }

  const std::vector<std::string>& duplicates() const { return duplicates_; }

 private:
  struct Level {
    std::string path;
    std::set<std::string> keys;
    bool is_array = false;
    std::size_t num_elements = 0;
    std::string current = {};
  };

  std::string child_path() const {
    if (open_.empty()) return "";
    const Level& level = open_.back();
    if (level.is_array) {
      return fmt::format("{}[{}]", level.path, level.num_elements);
    }
    return joined(level.path, level.current);
  }

  void count_element() {
    if (!open_.empty() && open_.back().is_array) ++open_.back().num_elements;
  }

  std::vector<Level> open_;
  std::vector<std::string> duplicates_;
};

// The library's text without its own prefix, "[json.exception...] ".
std::string_view parse_problem(const Json::exception& error) {
  std::string_view text = error.what();
  const std::size_t end = text.find("] ");
  return end == std::string_view::npos ? text : text.substr(end + 2);
}

std::string number_text(double value) {
  if (value == std::trunc(value) && std::abs(value) < 1e15) {
    return fmt::format("{:.0f}", value);
  }
  return fmt::format("{}", value);
}

}  // namespace

bool JsonRange::holds(double value) const {
  const bool above = least_is_open ? value > least : value >= least;
  const bool below = most_is_open ? value < most : value <= most;
  return above && below;
}

std::string JsonRange::describe(std::string_view noun) const {
  const std::string low = number_text(least);
  const std::string high = number_text(most);
  if (!std::isinf(least) && !std::isinf(most)) {
    if (!least_is_open && !most_is_open) {
      return fmt::format("{} from {} to {}", noun, low, high);
    }
    return fmt::format("{} {} {} and {} {}", noun,
                       least_is_open ? "above" : "from", low,
                       most_is_open ? "below" : "up to", high);
  }
  if (!std::isinf(least)) {
    return fmt::format("{} {} {}", noun, least_is_open ? "above" : "of at least",
                       low);
  }
  if (!std::isinf(most)) {
    return fmt::format("{} {} {}", noun, most_is_open ? "below" : "of at most",
                       high);
  }
  return std::string(noun);
}

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

  const Json* given(std::string_view key) const {
    if (node == nullptr) return nullptr;
    const auto found = node->find(std::string(key));
    if (found == node->end()) return nullptr;
    if (found->is_string() && found->get_ref<const std::string&>() == "auto") {
      state->note_once(joined(path, key) + ": \"auto\" is taken as the default");
      return nullptr;
    }
    return &*found;
  }

  // As given, and remembers that somebody asked for the key.
  const Json* ask(std::string_view key) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      known.emplace_back(key);
    }
    return given(key);
  }

  void add(std::string_view key, std::string_view text, bool is_unsupported) {
    std::string line = joined(path, key);
    if (!line.empty()) line += ": ";
    line += text;
    state->violations.push_back({std::move(line), is_unsupported});
  }

  void mismatch(std::string_view key, std::string_view expected,
                const Json& found) {
    add(key, fmt::format("expected {} but found {}", expected, shown(found)),
        false);
  }

  bool convert(std::string_view key, const Json& value, bool& out,
               JsonRange /*range*/) {
    if (value.is_boolean()) {
      out = value.get<bool>();
      return true;
    }
    const std::string word =
        value.is_string() ? lower(value.get<std::string>()) : "";
    const bool is_quoted = word == "true" || word == "false";
    add(key,
        fmt::format("expected true or false but found {}{}", shown(value),
                    is_quoted ? "; remove the quotes" : ""),
        false);
    return false;
  }

  bool convert(std::string_view key, const Json& value, std::int64_t& out,
               JsonRange range) {
    const auto number = integer_of(value);
    if (!number || !range.holds(static_cast<double>(*number))) {
      mismatch(key, range.describe("an integer"), value);
      return false;
    }
    out = *number;
    return true;
  }

  bool convert(std::string_view key, const Json& value, double& out,
               JsonRange range) {
    if (!value.is_number() || !range.holds(value.get<double>())) {
      mismatch(key, range.describe("a number"), value);
      return false;
    }
    out = value.get<double>();
    return true;
  }

  bool convert(std::string_view key, const Json& value, std::string& out,
               JsonRange /*range*/) {
    if (!value.is_string()) {
      mismatch(key, "a text in quotes", value);
      return false;
    }
    out = value.get<std::string>();
    return true;
  }

  template <typename T>
  bool convert(std::string_view key, const Json& value, std::vector<T>& out,
               JsonRange range) {
    if (std::is_same_v<T, std::string> && value.is_string()) {
      out.resize(1);
      return convert(key, value, out[0], range);
    }
    if (!value.is_array()) {
      mismatch(key, "a list in brackets", value);
      return false;
    }
    std::vector<T> items(value.size());
    bool fits = true;
    for (std::size_t i = 0; i < items.size(); ++i) {
      fits &= convert(fmt::format("{}[{}]", key, i), value[i], items[i], range);
    }
    if (fits) out = std::move(items);
    return fits;
  }

  template <typename T>
  bool read(std::string_view key, T& out, JsonRange range = {}) {
    const Json* value = ask(key);
    return value != nullptr && convert(key, *value, out, range);
  }

  Impl* child(std::string name, const Json* value) {
    for (const auto& [known_name, reader] : children) {
      if (known_name == name) return reader.get();
    }
    auto reader = std::make_shared<Impl>();
    reader->state = state;
    reader->path = joined(path, name);
    if (value != nullptr && value->is_object()) {
      reader->node = value;
    } else if (value != nullptr && !value->is_null()) {
      mismatch(name, "an object in braces", *value);
    }
    children.emplace_back(std::move(name), reader);
    return reader.get();
  }
};

const std::string& JsonObject::path() const { return impl_->path; }

std::string JsonObject::path_of(std::string_view key) const {
  return joined(impl_->path, key);
}

bool JsonObject::has(std::string_view key) const {
  return impl_->given(key) != nullptr;
}

std::vector<std::string> JsonObject::keys() const {
  std::vector<std::string> names;
  if (impl_->node == nullptr) return names;
  for (const auto& item : impl_->node->items()) names.push_back(item.key());
  return names;
}

bool JsonObject::read(std::string_view key, bool& value) {
  return impl_->read(key, value);
}

bool JsonObject::read(std::string_view key, std::int64_t& value,
                      JsonRange range) {
  return impl_->read(key, value, range);
}

bool JsonObject::read(std::string_view key, double& value, JsonRange range) {
  return impl_->read(key, value, range);
}

bool JsonObject::read(std::string_view key, std::string& value) {
  return impl_->read(key, value);
}

bool JsonObject::read(std::string_view key, std::vector<std::string>& value) {
  return impl_->read(key, value);
}

bool JsonObject::read(std::string_view key, std::vector<double>& value,
                      JsonRange range) {
  return impl_->read(key, value, range);
}

bool JsonObject::read(std::string_view key, std::vector<std::int64_t>& value,
                      JsonRange range) {
  return impl_->read(key, value, range);
}

bool JsonObject::read_null(std::string_view key) {
  const Json* value = impl_->ask(key);
  return value != nullptr && value->is_null();
}

std::optional<std::size_t> JsonObject::read_choice(
    std::string_view key, std::span<const std::string_view> names) {
  const Json* value = impl_->ask(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) {
    const std::string word = lower(value->get<std::string>());
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (lower(names[i]) == word) return i;
    }
  }
  impl_->mismatch(
      key, listed(std::vector<std::string>(names.begin(), names.end())),
      *value);
  return std::nullopt;
}

JsonObject JsonObject::object(std::string_view key) {
  const Json* value = impl_->ask(key);
  Impl* child = impl_->child(std::string(key), value);
  return JsonObject(std::shared_ptr<Impl>(impl_, child));
}

std::vector<JsonObject> JsonObject::objects(std::string_view key) {
  std::vector<JsonObject> result;
  const Json* value = impl_->ask(key);
  if (value == nullptr) return result;
  if (!value->is_array()) {
    impl_->mismatch(key, "a list of objects", *value);
    return result;
  }
  for (std::size_t i = 0; i < value->size(); ++i) {
    Impl* child = impl_->child(fmt::format("{}[{}]", key, i), &(*value)[i]);
    result.push_back(JsonObject(std::shared_ptr<Impl>(impl_, child)));
  }
  return result;
}

std::optional<std::string> JsonObject::raw(std::string_view key) {
  const Json* value = impl_->ask(key);
  if (value == nullptr) return std::nullopt;
  return value->dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string JsonObject::to_text() const {
  if (impl_->node == nullptr) return "{}";
  return impl_->node->dump(2, ' ', false, Json::error_handler_t::replace);
}

void JsonObject::require(std::string_view key) {
  if (impl_->ask(key) == nullptr) impl_->add(key, "is required", false);
}

void JsonObject::violation(std::string_view key, std::string_view text) {
  impl_->add(key, text, false);
}

void JsonObject::unsupported(std::string_view key, std::string_view text) {
  impl_->add(key, text, true);
}

void JsonObject::finish(std::span<const std::string> elsewhere) {
  for (const std::string& key : keys()) {
    const auto& known = impl_->known;
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    std::vector<std::string> meant;
    for (const std::string& path : elsewhere) {
      if (path.substr(path.rfind('.') + 1) == key) meant.push_back(path);
    }
    if (meant.empty()) meant = nearest_keys(key, known);
    std::string text = "unknown key";
    if (!meant.empty()) {
      text += fmt::format("; did you mean {}?", listed(meant));
    } else if (known.empty()) {
      text += "; no key is known here";
    } else {
      text += fmt::format("; known here are {}", fmt::join(known, ", "));
    }
    impl_->add(key, text, false);
  }
}

JsonDocument JsonDocument::from_text(std::string_view text,
                                     std::string_view source_name) {
  auto state = std::make_shared<State>();
  state->source = std::string(source_name);
  DuplicateFinder finder;
  try {
    state->root = Json::parse(
        text.begin(), text.end(), std::ref(finder),
        /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false, source_name, ": not readable as JSON: ",
                      parse_problem(error));
  }
  TORCH_CHECK_VALUE(state->root.is_object(), source_name,
                    ": expected a JSON object in braces but found ",
                    shown(state->root));
  for (const std::string& path : finder.duplicates()) {
    state->violations.push_back(
        {path + ": given twice; remove one of the two", false});
  }
  return JsonDocument(std::move(state));
}

JsonDocument JsonDocument::from_file(const std::string& path) {
  NFOLD_CHECK_IO(!std::filesystem::is_directory(path), path,
                 ": expected a JSON file but found a folder");
  std::ifstream file(path, std::ios::binary);
  NFOLD_CHECK_IO(file.is_open(), path,
                 ": cannot be opened for reading; does the file exist?");
  std::ostringstream text;
  text << file.rdbuf();
  NFOLD_CHECK_IO(!file.bad() && !text.bad(), path, ": cannot be read");
  return from_text(text.str(), path);
}

void JsonDocument::set(std::string_view assignment) {
  const std::size_t equals = assignment.find('=');
  TORCH_CHECK_VALUE(equals != std::string_view::npos && equals > 0,
                    "override \"", assignment,
                    "\": expected name=value, as in train.steps=100");
  const std::string_view path = assignment.substr(0, equals);
  const std::string value(assignment.substr(equals + 1));

  Json* node = &state_->root;
  std::size_t begin = 0;
  while (true) {
    const std::size_t dot = path.find('.', begin);
    const std::string part(path.substr(begin, dot - begin));
    TORCH_CHECK_VALUE(!part.empty(), "override \"", assignment,
                      "\": a part of the name is empty");
    if (node->is_null()) *node = Json::object();
    TORCH_CHECK_VALUE(node->is_object(), "override \"", assignment, "\": ",
                      path.substr(0, begin - 1), " is ", shown(*node),
                      ", which has no key ", part);
    node = &(*node)[part];
    if (dot == std::string_view::npos) break;
    begin = dot + 1;
  }
  Json parsed = Json::parse(value, nullptr, /*allow_exceptions=*/false);
  *node = parsed.is_discarded() ? Json(value) : std::move(parsed);
}

JsonObject JsonDocument::root() const {
  if (state_->root_reader == nullptr) {
    state_->root_reader = std::make_shared<JsonObject::Impl>();
    state_->root_reader->state = state_.get();
    state_->root_reader->node = &state_->root;
  }
  return JsonObject(std::shared_ptr<JsonObject::Impl>(
      state_, state_->root_reader.get()));
}

std::string JsonDocument::to_text() const { return root().to_text(); }

bool JsonDocument::is_violated() const { return !state_->violations.empty(); }

void JsonDocument::raise_if_violated() const {
  const auto& violations = state_->violations;
  if (violations.empty()) return;
  std::string text = fmt::format(
      "{}: {}", state_->source,
      violations.size() == 1
          ? "1 problem"
          : fmt::format("{} problems", violations.size()));
  bool all_unsupported = true;
  for (const Violation& violation : violations) {
    text += "\n  " + violation.text;
    all_unsupported &= violation.is_unsupported;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(!all_unsupported, text);
  TORCH_CHECK_VALUE(false, text);
}

const std::vector<std::string>& JsonDocument::notes() const {
  return state_->notes;
}

}  // namespace nfold
