#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "config/config_key.h"
#include "config/key_value.h"
#include "config/validate.h"
#include "nfold/config.h"
#include "nfold/strict_json.h"

namespace nfold {
namespace {

using Json = nlohmann::ordered_json;

// Optimizers and schedulers of DeepSpeed's that nfold has no loop for.
constexpr std::string_view kMissingOptimizers[] = {
    "lamb",       "muon",        "muadam",     "muadamw", "musgd",
    "onebitadam", "zerooneadam", "onebitlamb", "lbfgs"};

// Whether a section of DeepSpeed's is there but switched off.
bool is_off(const std::string& raw) {
  const Json value = Json::parse(raw);
  if (value.is_null() || value.empty()) return true;
  if (value.is_boolean()) return !value.get<bool>();
  if (!value.is_object() || !value.contains("enabled")) return false;
  return value["enabled"] == false;
}

class ConfigReader {
 public:
  explicit ConfigReader(JsonObject root) : root_(std::move(root)) {}

  Config read() {
    read_zero_switch();
    read_section_types();
    for (const ConfigKey& key : config_keys()) read_key(key);
    if (zero_switch_.empty()) read_offload_switches();
    require_keys();
    finish();
    add_violations(config_, root_);
    return std::move(config_);
  }

 private:
  // zero_optimization: true, the oldest form, means stage 1.
  void read_zero_switch() {
    const auto raw = root_.raw("zero_optimization");
    if (raw != "true" && raw != "false") return;
    zero_switch_ = *raw;
    config_.zero_optimization.stage = *raw == "true" ? 1 : 0;
    root_.read("allgather_size",
               config_.zero_optimization.allgather_bucket_size, {.least = 1});
    note(root_.path_of("zero_optimization"),
         fmt::format("deprecated; {} is read as an object with stage {}", *raw,
                     config_.zero_optimization.stage));
  }

  // The types come first, as they decide the defaults and the keys.
  void read_section_types() {
    if (has_section("optimizer")) {
      config_.optimizer.emplace();
      has_optimizer_type_ = read_optimizer_type();
    }
    if (has_section("scheduler")) {
      config_.scheduler.emplace();
      has_scheduler_type_ = read_type("scheduler", config_.scheduler->type);
      config_.scheduler->params =
          default_scheduler_params(config_.scheduler->type);
    }
  }

  bool has_section(std::string_view name) {
    root_.object(name);  // a violation for what is neither null nor an object
    const auto raw = root_.raw(name);
    return raw && raw->front() == '{';
  }

  bool read_optimizer_type() {
    JsonObject section = root_.object("optimizer");
    OptimizerConfig& optimizer = *config_.optimizer;
    if (const auto raw = section.raw("type"); raw && raw->size() > 2) {
      for (std::string_view name : kMissingOptimizers) {
        if (!is_same_word(raw->substr(1, raw->size() - 2), name)) continue;
        section.unsupported(
            "type", fmt::format("{} is not available; choose {}", *raw,
                                fmt::join(names_of(optimizer.type), ", ")));
        return false;
      }
    }
    const bool found = read_type("optimizer", optimizer.type);
    optimizer.params = default_optimizer_params(optimizer.type);
    return found;
  }

  template <typename Type>
  bool read_type(std::string_view name, Type& type) {
    JsonObject section = root_.object(name);
    section.require("type");
    const auto index = section.read_choice("type", names_of(type));
    if (!index) return false;
    type = static_cast<Type>(*index);
    return true;
  }

  static bool is_same_word(std::string_view left, std::string_view right) {
    return std::equal(left.begin(), left.end(), right.begin(), right.end(),
                      [](unsigned char a, unsigned char b) {
                        return std::tolower(a) == std::tolower(b);
                      });
  }

  // The reader of a section, by the path that the table gives it.
  JsonObject& section(std::string_view path) {
    const auto found = sections_.find(path);
    if (found != sections_.end()) return found->second;
    if (path.empty()) return sections_.emplace("", root_).first->second;
    JsonObject& outer = section(section_of(path));
    std::string name(leaf_of(path));
    if (path == "bf16") {
      outer.raw("bf16");
      outer.raw("bfloat16");
      if (outer.has("bfloat16")) {
        if (outer.has("bf16")) {
          outer.violation("bfloat16",
                          "is another name of bf16; give one of the two");
        }
        name = "bfloat16";
      }
    }
    return sections_.emplace(std::string(path), outer.object(name))
        .first->second;
  }

  void read_key(const ConfigKey& key) {
    if (key.path == "optimizer.type" || key.path == "scheduler.type") return;
    if (!zero_switch_.empty() && key.path.starts_with("zero_optimization.")) {
      return;
    }
    if (key.path.starts_with("optimizer.") && !config_.optimizer) return;
    if (key.path.starts_with("scheduler.") && !config_.scheduler) return;

    JsonObject& object = section(section_of(key.path));
    const std::string name = given_name(object, key);
    if (std::holds_alternative<std::monostate>(key.field)) {
      read_free_key(object, name, key);
      return;
    }
    if (!is_of_type(object, name, key)) return;
    if (!object.has(name)) {
      object.raw(name);
      return;
    }
    read_value(object, name, key, config_);
    add_status_note(key);
  }

  // The name under which the file gives the key.
  std::string given_name(JsonObject& object, const ConfigKey& key) {
    std::string name(leaf_of(key.path));
    for (const KeyAlias& alias : key_aliases()) {
      if (alias.path != key.path) continue;
      object.raw(alias.name);
      if (!object.has(alias.name)) continue;
      if (object.has(name)) {
        object.violation(
            alias.name,
            fmt::format("is another name of {}; give one of the two", name));
        continue;
      }
      if (alias.is_deprecated) {
        note(object.path_of(alias.name),
             fmt::format("deprecated; read as {}", name));
      }
      object.raw(name);
      name = alias.name;
    }
    return name;
  }

  // Settings of another optimizer or scheduler are errors, not noise.
  bool is_of_type(JsonObject& object, const std::string& name,
                  const ConfigKey& key) {
    const bool is_optimizer = key.path.starts_with("optimizer.");
    const bool is_scheduler = key.path.starts_with("scheduler.");
    if (!is_optimizer && !is_scheduler) return true;
    object.raw(name);
    if (is_optimizer ? !has_optimizer_type_ : !has_scheduler_type_) {
      return false;
    }
    if (has_key(config_, key)) return true;
    if (object.has(name)) {
      const std::string_view type = is_optimizer
                                        ? name_of(config_.optimizer->type)
                                        : name_of(config_.scheduler->type);
      std::vector<std::string_view> settings;
      for (const ConfigKey& other : config_keys()) {
        if (section_of(other.path) == section_of(key.path) &&
            has_key(config_, other)) {
          settings.push_back(leaf_of(other.path));
        }
      }
      object.violation(name, fmt::format("is no setting of {}, which has {}",
                                         type, fmt::join(settings, ", ")));
    }
    return false;
  }

  // A key of which only the presence counts.
  void read_free_key(JsonObject& object, const std::string& name,
                     const ConfigKey& key) {
    const auto raw = object.raw(name);
    if (!raw || *raw == "null") return;
    if (key.path == "optimizer.params.max_grad_norm") {
      object.violation(name,
                       "is no setting of an optimizer; use "
                       "gradient_clipping at the top level");
      return;
    }
    if (key.path == "$schema" ||
        key.path.starts_with("zero_optimization.cpu_offload")) {
      return;  // the latter: read_offload_switches
    }
    if (key.path == "allgather_size") {
      if (zero_switch_.empty()) {
        object.violation(name,
                         "is only read where zero_optimization is true; use "
                         "zero_optimization.allgather_bucket_size");
      }
      return;
    }
    for (const Unavailable& row : unavailable_keys()) {
      if (row.path == key.path && !is_off(*raw)) {
        object.unsupported(name, row.text);
        return;
      }
    }
    add_status_note(key);
  }

  void add_status_note(const ConfigKey& key) {
    if (key.status == KeyStatus::kHonoured) return;
    const std::string_view word =
        key.status == KeyStatus::kSubsumed ? "not needed here" : "no effect";
    const std::string_view group = section_of(key.path);
    // One line for a section that has nothing to say key by key.
    const bool is_section_note =
        !group.empty() && group != "zero_optimization" && group != "fp16" &&
        group != "bf16" && group != "optimizer.params";
    note(root_.path_of(is_section_note ? group : key.path),
         fmt::format("{}: {}", word, key.effect));
  }

  // cpu_offload and cpu_offload_param, from before there were sections.
  void read_offload_switches() {
    const auto read_switch = [&](std::string_view name, std::string_view now,
                                 OffloadDevice& device) {
      JsonObject& zero = section("zero_optimization");
      bool is_on = false;
      if (!zero.read(name, is_on)) return;
      if (zero.has(now)) {
        zero.violation(name, fmt::format("is the older form of {}; give one of "
                                         "the two",
                                         now));
        return;
      }
      note(zero.path_of(name),
           fmt::format("deprecated; read as {} with device {}", now,
                       is_on ? "cpu" : "none"));
      if (is_on) device = OffloadDevice::kCpu;
    };
    ZeroConfig& zero = config_.zero_optimization;
    read_switch("cpu_offload", "offload_optimizer",
                zero.offload_optimizer.device);
    read_switch("cpu_offload_param", "offload_param",
                zero.offload_param.device);
    if (section("zero_optimization").has("cpu_offload_use_pin_memory")) {
      note(root_.path_of("zero_optimization.cpu_offload_use_pin_memory"),
           "no effect: deprecated");
    }
  }

  void require_keys() {
    for (const ConfigKey& key : config_keys()) {
      if (!key.is_required || leaf_of(key.path) == "type") continue;
      if (!has_scheduler_type_ || !has_key(config_, key)) continue;
      section(section_of(key.path)).require(leaf_of(key.path));
    }
  }

  void finish() {
    std::vector<std::string> paths;
    for (const ConfigKey& key : config_keys()) {
      paths.push_back(root_.path_of(key.path));
    }
    for (auto& [path, object] : sections_) object.finish(paths);
  }

  void note(std::string_view path, std::string_view text) {
    std::string line = fmt::format("{}: {}", path, text);
    auto& notes = config_.notes;
    if (std::find(notes.begin(), notes.end(), line) == notes.end()) {
      notes.push_back(std::move(line));
    }
  }

  JsonObject root_;
  Config config_;
  std::map<std::string, JsonObject, std::less<>> sections_;
  std::string zero_switch_;
  bool has_optimizer_type_ = false;
  bool has_scheduler_type_ = false;
};

}  // namespace

Config Config::from_json_object(JsonObject object) {
  return ConfigReader(std::move(object)).read();
}

}  // namespace nfold
