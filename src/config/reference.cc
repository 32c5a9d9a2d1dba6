#include "config/reference.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <type_traits>
#include <utility>
#include <vector>

#include "config/config_key.h"

namespace nfold {
namespace {

constexpr std::string_view kIntroduction =
    R"(<!-- Written by nfold-config-reference from the table the reader uses.
     After a change of src/config: build/release/src/config/)"
    R"(nfold-config-reference > docs/configuration.md -->

# Configuration

A configuration is a JSON object with DeepSpeed's keys. For the `nfold` program
it is the section `engine` of the run's file; a program of your own reads it
with `nfold::Config::from_json_file`.

```json
{
  "train_micro_batch_size_per_gpu": 4,
  "optimizer": {"type": "AdamW", "params": {"lr": 3e-4}},
  "bf16": {"enabled": true},
  "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e7}
}
```

## How it is read

- Everything wrong with a file is reported at once, one line per key, before
  anything else happens. Nothing is repaired silently.
- An unknown key is an error that names the nearest known one. A key given
  twice is an error.
- `"auto"` means that the key is absent; a note in the log says so.
- Integers may be written `5e8`; `1.5` is an error. Truth values are `true` and
  `false`, without quotes.
- Comments, `//` and `/* */`, are skipped.
- `Config::from_json_text` also takes the text in base64.
- `--set engine.zero_optimization.stage=1` overrides a key for one run.
- Keys that do nothing here are named in the log, with the reason. So are
  deprecated keys, with what they are read as.
- The trainer saves the effective configuration as
  `config.effective.json`, which reads back as the same configuration.

Each key below is one of

- **honoured**: it does what the text says;
- **subsumed**: accepted; nfold does what it asks for in any case, or has no
  need of it;
- **ignored**: accepted, without effect;
- **not available**: any value but the default is an error that says what to
  use instead.

## Batch sizes

```
train_batch_size = train_micro_batch_size_per_gpu )"
    R"(x gradient_accumulation_steps x ranks
```

Any two give the third. `train_batch_size` or `train_micro_batch_size_per_gpu`
alone means one accumulation step. `gradient_accumulation_steps` alone is not
enough. Sizes that do not multiply out are an error that names the one to
correct and the values that would fit.

With 4 ranks:

| train_batch_size | train_micro_batch_size_per_gpu )"
    R"(| gradient_accumulation_steps | result |
| --- | --- | --- | --- |
| 32 | 2 | 4 | as given |
| 32 | 2 | | 4 accumulation steps |
| 32 | | 4 | micro batch of 2 |
| | 2 | 4 | batch of 32 |
| 32 | | | micro batch of 8, 1 accumulation step |
| | 2 | | batch of 8, 1 accumulation step |
| 33 | 2 | | error: 33 is no multiple of 2 x 4 |

## Where nfold differs from DeepSpeed

- Unknown keys are errors at every level, not only inside `zero_optimization`.
- `data_types.grad_accum_dtype` is fp32 unless set, at every precision.
- A batch that the micro batch and the ranks do not divide is an error where
  DeepSpeed rounds first and complains afterwards.
- `prescale_gradients` and `gradient_predivide_factor` hold at every stage and
  with `reduce_scatter`.
- `allgather_bucket_size` may be odd.
- `zero_optimization.reduce_at_boundary` exists only here.
- Settings of an optimizer or scheduler of another type are errors.
)";

const Unavailable* find_unavailable(const ConfigKey& key) {
  for (const Unavailable& row : unavailable_keys()) {
    if (row.path == key.path) return &row;
  }
  return nullptr;
}

std::string status_text(const ConfigKey& key) {
  const Unavailable* missing = find_unavailable(key);
  if (missing != nullptr && missing->applies == nullptr) {
    // What is missing is what the key does; only what to do instead is new.
    return fmt::format("**not available**: {}{}", key.effect,
                       missing->text.substr(missing->text.find("; ")));
  }
  std::string_view word = "honoured";
  if (key.status == KeyStatus::kSubsumed) word = "subsumed";
  if (key.status == KeyStatus::kIgnored) word = "ignored";
  std::string text = fmt::format("**{}**: {}", word, key.effect);
  if (missing != nullptr) text += fmt::format("; {}", missing->text);
  return text;
}

// A configuration with every section that a key may be in, for each type.
template <typename Type>
std::vector<std::pair<std::string_view, Config>> typed_configs() {
  std::vector<std::pair<std::string_view, Config>> result;
  const auto names = names_of(Type{});
  for (std::size_t i = 0; i < names.size(); ++i) {
    Config config;
    const auto type = static_cast<Type>(i);
    if constexpr (std::is_same_v<Type, OptimizerType>) {
      config.optimizer = {type, default_optimizer_params(type)};
    } else {
      config.scheduler = {type, default_scheduler_params(type)};
    }
    result.emplace_back(names[i], std::move(config));
  }
  return result;
}

// The default, with the types that have another one.
template <typename Type>
std::string typed_default(const ConfigKey& key) {
  std::vector<std::pair<std::string, std::vector<std::string_view>>> values;
  for (const auto& [type, config] : typed_configs<Type>()) {
    if (!has_key(config, key)) continue;
    const std::string value = value_text(config, key);
    auto found = std::find_if(values.begin(), values.end(), [&](auto& entry) {
      return entry.first == value;
    });
    if (found == values.end()) {
      values.push_back({value, {}});
      found = std::prev(values.end());
    }
    found->second.push_back(type);
  }
  std::string text;
  for (const auto& [value, names] : values) {
    if (!text.empty()) text += "; ";
    text += value == "null" ? "unset" : fmt::format("`{}`", value);
    if (values.size() == 1) break;
    text += fmt::format(" ({})", fmt::join(names, ", "));
  }
  return text;
}

std::string default_text(const ConfigKey& key) {
  if (key.is_required) return "required";
  if (std::holds_alternative<std::monostate>(key.field)) return "unset";
  if (key.path.starts_with("optimizer.")) {
    return typed_default<OptimizerType>(key);
  }
  if (key.path.starts_with("scheduler.")) {
    return typed_default<SchedulerType>(key);
  }
  const std::string value = value_text(Config{}, key);
  return value == "null" || value == "\"\"" ? "unset"
                                            : fmt::format("`{}`", value);
}

// "Adam, AdamW" for a setting that not every type has.
template <typename Type>
std::string owners_text(const ConfigKey& key) {
  if (key.owners == kEveryType) return "all";
  std::vector<std::string_view> owners;
  const auto names = names_of(Type{});
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (key.owners & (1U << i)) owners.push_back(names[i]);
  }
  return fmt::format("{}", fmt::join(owners, ", "));
}

std::string row_text(const ConfigKey& key) {
  std::string owners;
  if (key.path.starts_with("optimizer.params.")) {
    owners = fmt::format(" {} |", owners_text<OptimizerType>(key));
  } else if (key.path.starts_with("scheduler.params.")) {
    owners = fmt::format(" {} |", owners_text<SchedulerType>(key));
  }
  return fmt::format("| `{}` |{} {} | {} | {} |\n", leaf_of(key.path), owners,
                     type_text(key), default_text(key), status_text(key));
}

}  // namespace

std::string reference_markdown() {
  std::string text(kIntroduction);
  std::vector<std::string_view> sections;
  for (const ConfigKey& key : config_keys()) {
    const auto section = section_of(key.path);
    if (std::find(sections.begin(), sections.end(), section) ==
        sections.end()) {
      sections.push_back(section);
    }
  }
  for (std::string_view section : sections) {
    const bool has_owners =
        section == "optimizer.params" || section == "scheduler.params";
    text += section.empty() ? "\n## Top level\n\n"
                            : fmt::format("\n## `{}`\n\n", section);
    text += fmt::format("| Key |{} Values | Default | Here |\n",
                        has_owners ? " Of |" : "");
    text += fmt::format("| --- |{} --- | --- | --- |\n",
                        has_owners ? " --- |" : "");
    for (const ConfigKey& key : config_keys()) {
      if (section_of(key.path) == section) text += row_text(key);
    }
  }
  text += "\n## Other names\n\n| Name | Read as |\n| --- | --- |\n";
  text += "| `bfloat16` | `bf16` |\n";
  for (const KeyAlias& alias : key_aliases()) {
    text += fmt::format("| `{}.{}` | `{}`{} |\n", section_of(alias.path),
                        alias.name, leaf_of(alias.path),
                        alias.is_deprecated ? ", deprecated" : "");
  }
  return text;
}

}  // namespace nfold
