// File: config_key.h
//
// The one table of every key a configuration may have. The reader, the writer,
// the check for unknown keys, the notes and docs/configuration.md all come from
// it, so that a key is described in one place.
//
//   for (const ConfigKey& key : config_keys()) {
//     if (key.status == KeyStatus::kSubsumed) ...
//   }
//
// To add a key: a field in nfold/config.h and a row in one of the *_keys.cc.
// To make a key available that was not: delete its row in unavailable.cc.
//
// Immutable after first use; callable from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "nfold/config.h"
#include "nfold/strict_json.h"

namespace nfold {

enum class KeyStatus : std::uint8_t {
  kHonoured,
  // The key has no effect because nfold always does what it asks for, or has
  // no need of it.
  kSubsumed,
  // The key has no effect here.
  kIgnored,
};

template <typename T>
using FieldOf = T& (*)(Config&);

// The field a key fills in; none for a key of which only the presence counts.
using KeyField = std::variant<
    std::monostate, FieldOf<bool>, FieldOf<std::int64_t>, FieldOf<double>,
    FieldOf<std::string>, FieldOf<std::optional<bool>>,
    FieldOf<std::optional<std::int64_t>>, FieldOf<std::optional<double>>,
    FieldOf<std::optional<std::string>>, FieldOf<std::vector<std::string>>,
    FieldOf<std::array<double, 2>>, FieldOf<at::ScalarType>,
    FieldOf<std::optional<at::ScalarType>>, FieldOf<OffloadDevice>,
    FieldOf<GradientReduceOp>, FieldOf<TagValidation>, FieldOf<WarmupType>,
    FieldOf<OptimizerType>, FieldOf<SchedulerType>>;

inline constexpr unsigned kEveryType = ~0U;

// One bit per type of optimizer or scheduler.
template <typename... Types>
constexpr unsigned types(Types... types) {
  return (0U | ... | (1U << static_cast<unsigned>(types)));
}

struct ConfigKey {
  std::string_view path;
  KeyField field;
  KeyStatus status = KeyStatus::kHonoured;
  // What the key does here, or why it does nothing; a phrase without full stop.
  std::string_view effect;
  JsonRange range = {};
  // Which optimizers or schedulers have this setting.
  unsigned owners = kEveryType;
  bool is_required = false;
};

// In the order of the reference.
const std::vector<ConfigKey>& config_keys();
const ConfigKey* find_config_key(std::string_view path);

// A key of another name that fills in `path`.
struct KeyAlias {
  std::string_view name;
  std::string_view path;
  bool is_deprecated = true;
};
const std::vector<KeyAlias>& key_aliases();

// A key, or a value of it, that this version lacks.
struct Unavailable {
  std::string_view path;
  // What is missing; what to use instead. Two phrases with "; " between.
  std::string_view text;
  // Empty: any value but the default.
  bool (*applies)(const Config&) = nullptr;
};
const std::vector<Unavailable>& unavailable_keys();

// Names of the values of an enumeration, in the order of its values.
std::span<const std::string_view> names_of(OffloadDevice);
std::span<const std::string_view> names_of(GradientReduceOp);
std::span<const std::string_view> names_of(TagValidation);
std::span<const std::string_view> names_of(WarmupType);
std::span<const std::string_view> names_of(OptimizerType);
std::span<const std::string_view> names_of(SchedulerType);

template <typename E>
std::string_view name_of(E value) {
  return names_of(E{})[static_cast<std::size_t>(value)];
}

// fp32, fp16 and bf16 in every spelling that DeepSpeed reads.
std::optional<at::ScalarType> dtype_of(std::string_view name);
std::string_view dtype_name(at::ScalarType dtype);

// "zero_optimization" of "zero_optimization.stage"; empty at the top level.
std::string_view section_of(std::string_view path);
std::string_view leaf_of(std::string_view path);

// Whether the configuration has this key at all: keys of the optimizer and of
// the scheduler depend on there being one and on its type.
bool has_key(const Config& config, const ConfigKey& key);

// The value as JSON text; "null" for an empty optional. Only if has_key.
std::string value_text(const Config& config, const ConfigKey& key);

// "integer of at least 1", "fp16, bf16 or fp32".
std::string type_text(const ConfigKey& key);

// The rows of each part; config_keys() joins them.
std::vector<ConfigKey> engine_keys();
std::vector<ConfigKey> zero_keys();
std::vector<ConfigKey> optimizer_keys();
std::vector<ConfigKey> scheduler_keys();
std::vector<ConfigKey> service_keys();

}  // namespace nfold

// Path and field of a key whose path is the C++ name of the field.
#define NFOLD_KEY(name) \
  #name, +[](Config& config) -> auto& { return config.name; }
#define NFOLD_OPTIMIZER_KEY(name) \
  "optimizer." #name,             \
      +[](Config& config) -> auto& { return config.optimizer->name; }
#define NFOLD_SCHEDULER_KEY(name) \
  "scheduler." #name,             \
      +[](Config& config) -> auto& { return config.scheduler->name; }
