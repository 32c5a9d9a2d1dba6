#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <utility>

#include "config/json_state.h"
#include "nfold/errors.h"
#include "nfold/strict_json.h"

namespace nfold {
namespace {

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

}  // namespace

JsonDocument JsonDocument::from_text(std::string_view text,
                                     std::string_view source_name) {
  auto state = std::make_shared<State>();
  state->source = std::string(source_name);
  DuplicateFinder finder;
  try {
    state->root =
        Json::parse(text.begin(), text.end(), std::ref(finder),
                    /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(false, source_name,
                      ": not readable as JSON: ", parse_problem(error));
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
    TORCH_CHECK_VALUE(node->is_object(), "override \"", assignment,
                      "\": ", path.substr(0, begin - 1), " is ", shown(*node),
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
  return JsonObject(
      std::shared_ptr<JsonObject::Impl>(state_, state_->root_reader.get()));
}

std::string JsonDocument::to_text() const { return root().to_text(); }

bool JsonDocument::is_violated() const { return !state_->violations.empty(); }

void JsonDocument::raise_if_violated() const {
  const auto& violations = state_->violations;
  if (violations.empty()) return;
  std::string text = fmt::format(
      "{}: {}", state_->source,
      violations.size() == 1 ? "1 problem"
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
