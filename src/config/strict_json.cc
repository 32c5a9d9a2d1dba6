#include "nfold/strict_json.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <type_traits>
#include <utility>

#include "config/json_state.h"
#include "config/nearest_key.h"

namespace nfold {
namespace {

constexpr std::size_t kMaxShown = 60;

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
    letter =
        static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return result;
}

// A whole number that fits, however it was written: 500, 5e2, 500.0.
std::optional<std::int64_t> integer_of(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (number >
        static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
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

std::string number_text(double value) {
  if (value == std::trunc(value) && std::abs(value) < 1e15) {
    return fmt::format("{:.0f}", value);
  }
  return fmt::format("{}", value);
}

}  // namespace

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  if (value.is_string()) return "the text " + text;
  return text;
}

std::string joined(std::string_view path, std::string_view key) {
  if (path.empty()) return std::string(key);
  if (key.empty()) return std::string(path);
  return fmt::format("{}.{}", path, key);
}

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
    return fmt::format("{} {} {}", noun,
                       least_is_open ? "above" : "of at least", low);
  }
  if (!std::isinf(most)) {
    return fmt::format("{} {} {}", noun, most_is_open ? "below" : "of at most",
                       high);
  }
  return std::string(noun);
}

const Json* JsonObject::Impl::given(std::string_view key) const {
  if (node == nullptr) return nullptr;
  const auto found = node->find(std::string(key));
  if (found == node->end()) return nullptr;
  if (found->is_string() && found->get_ref<const std::string&>() == "auto") {
    state->note_once(joined(path, key) + ": \"auto\" is taken as the default");
    return nullptr;
  }
  return &*found;
}

const Json* JsonObject::Impl::ask(std::string_view key) {
  if (std::find(known.begin(), known.end(), key) == known.end()) {
    known.emplace_back(key);
  }
  return given(key);
}

void JsonObject::Impl::add(std::string_view key, std::string_view text,
                           bool is_unsupported) {
  std::string line = joined(path, key);
  if (!line.empty()) line += ": ";
  line += text;
  state->violations.push_back({std::move(line), is_unsupported});
}

void JsonObject::Impl::mismatch(std::string_view key, std::string_view expected,
                                const Json& found) {
  add(key, fmt::format("expected {} but found {}", expected, shown(found)),
      false);
}

bool JsonObject::Impl::convert(std::string_view key, const Json& value,
                               bool& out, JsonRange /*range*/) {
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

bool JsonObject::Impl::convert(std::string_view key, const Json& value,
                               std::int64_t& out, JsonRange range) {
  const auto number = integer_of(value);
  if (!number || !range.holds(static_cast<double>(*number))) {
    mismatch(key, range.describe("an integer"), value);
    return false;
  }
  out = *number;
  return true;
}

bool JsonObject::Impl::convert(std::string_view key, const Json& value,
                               double& out, JsonRange range) {
  if (!value.is_number() || !range.holds(value.get<double>())) {
    mismatch(key, range.describe("a number"), value);
    return false;
  }
  out = value.get<double>();
  return true;
}

bool JsonObject::Impl::convert(std::string_view key, const Json& value,
                               std::string& out, JsonRange /*range*/) {
  if (!value.is_string()) {
    mismatch(key, "a text in quotes", value);
    return false;
  }
  out = value.get<std::string>();
  return true;
}

template <typename T>
bool JsonObject::Impl::convert(std::string_view key, const Json& value,
                               std::vector<T>& out, JsonRange range) {
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

JsonObject::Impl* JsonObject::Impl::child(std::string name, const Json* value) {
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
  impl_->mismatch(key,
                  listed(std::vector<std::string>(names.begin(), names.end())),
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

}  // namespace nfold
