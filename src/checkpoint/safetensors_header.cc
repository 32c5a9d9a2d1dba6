#include "checkpoint/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "nfold/errors.h"

namespace nfold {
namespace {

using Json = nlohmann::json;

constexpr const char* kMetadataKey = "__metadata__";
// More dimensions than torch's kernels take.
constexpr std::size_t kMaxDims = 64;

constexpr std::pair<const char*, at::ScalarType> kDtypes[] = {
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
    {"U16", at::kUInt16},
    {"U32", at::kUInt32},
    {"U64", at::kUInt64},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
    {"C64", at::kComplexFloat},
};

std::optional<at::ScalarType> dtype_named(const std::string& name) {
  for (const auto& [known, dtype] : kDtypes) {
    if (name == known) return dtype;
  }
  return std::nullopt;
}

std::string dtype_names() {
  std::string result;
  for (const auto& [name, dtype] : kDtypes) {
    result += (result.empty() ? "" : ", ") + std::string(name);
  }
  return result;
}

// A name as it may be shown: from a hostile file it may be long or hold
// control characters.
std::string shown(const std::string& name) {
  constexpr std::size_t kMaxShown = 120;
  return Json(name.size() <= kMaxShown ? name : name.substr(0, kMaxShown))
             .dump(-1, ' ', true, Json::error_handler_t::replace) +
         (name.size() <= kMaxShown ? "" : "...");
}

Json parse_json(std::string_view text, const std::string& path) {
  // {"name": {"shape": [...]}} is the deepest that the format has; a limit
  // keeps a hostile header from growing into gigabytes of nested values.
  constexpr int kMaxDepth = 3;
  std::set<std::string> names;
  auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    NFOLD_CHECK_IO(depth <= kMaxDepth, path,
                   ": the header nests deeper than the safetensors format "
                   "does; the file is damaged or of another kind.");
    if (event == Json::parse_event_t::key && depth == 1) {
      const auto& name = value.get_ref<const std::string&>();
      NFOLD_CHECK_IO(names.insert(name).second, path, ": tensor ", shown(name),
                     " stands twice in the header.");
    }
    return true;
  };
  try {
    return Json::parse(text, check);
  } catch (const Json::parse_error& error) {
    NFOLD_CHECK_IO(false, path, ": the header is not valid JSON at byte ",
                   error.byte,
                   "; the file is damaged or not a safetensors file.");
    throw;
  }
}

std::map<std::string, std::string> parse_metadata(const Json& value,
                                                  const std::string& path) {
  NFOLD_CHECK_IO(value.is_object(), path, ": ", kMetadataKey,
                 " must be an object of strings, found ", value.type_name(),
                 ".");
  std::map<std::string, std::string> result;
  for (const auto& [key, text] : value.items()) {
    NFOLD_CHECK_IO(text.is_string(), path, ": ", kMetadataKey, ".", shown(key),
                   " must be a string, found ", text.type_name(), ".");
    result[key] = text.get<std::string>();
  }
  return result;
}

// A size or an offset. Integers of JSON up to 2^63 - 1.
std::int64_t parse_count(const Json& value, const std::string& where) {
  const bool is_count =
      value.is_number_unsigned() &&
      value.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX);
  NFOLD_CHECK_IO(is_count, where,
                 " must hold integers from 0 to 2^63 - 1, found ",
                 value.is_number() ? value.dump() : value.type_name(), ".");
  return value.get<std::int64_t>();
}

const Json& field(const Json& entry, const char* key, const std::string& where,
                  Json::value_t type) {
  const auto found = entry.find(key);
  NFOLD_CHECK_IO(found != entry.end(), where, ": \"", key, "\" is missing.");
  NFOLD_CHECK_IO(found->type() == type, where, ": \"", key,
                 "\" has the wrong type, ", found->type_name(), ".");
  return *found;
}

SafetensorsEntry parse_entry(const std::string& name, const Json& value,
                             std::int64_t data_bytes, const std::string& path) {
  const std::string where = path + ": tensor " + shown(name);
  NFOLD_CHECK_IO(value.is_object(), where, " must be an object, found ",
                 value.type_name(), ".");
  const auto& dtype_name = field(value, "dtype", where, Json::value_t::string)
                               .get_ref<const std::string&>();
  const auto dtype = dtype_named(dtype_name);
  NFOLD_CHECK_IO(dtype.has_value(), where, ": dtype ", shown(dtype_name),
                 " is not one that nfold reads: ", dtype_names(), ".");
  SafetensorsEntry entry{name, *dtype, {}, 0, 0};

  const Json& shape = field(value, "shape", where, Json::value_t::array);
  NFOLD_CHECK_IO(shape.size() <= kMaxDims, where, " has ", shape.size(),
                 " dimensions; at most ", kMaxDims, " are possible.");
  auto expected_bytes = static_cast<std::int64_t>(c10::elementSize(*dtype));
  bool is_overflow = false;
  bool is_empty = false;
  for (const Json& size : shape) {
    entry.shape.push_back(parse_count(size, where + ": \"shape\""));
    is_empty |= entry.shape.back() == 0;
    is_overflow |= __builtin_mul_overflow(expected_bytes, entry.shape.back(),
                                          &expected_bytes);
  }
  NFOLD_CHECK_IO(!is_overflow || is_empty, where,
                 " is larger than any file can be: shape ", shape.dump(), ".");
  if (is_empty) expected_bytes = 0;

  const Json& offsets =
      field(value, "data_offsets", where, Json::value_t::array);
  NFOLD_CHECK_IO(offsets.size() == 2, where,
                 ": \"data_offsets\" must be [begin, end], found ",
                 offsets.size(), " values.");
  entry.begin_bytes = parse_count(offsets[0], where + ": \"data_offsets\"");
  entry.end_bytes = parse_count(offsets[1], where + ": \"data_offsets\"");
  NFOLD_CHECK_IO(entry.begin_bytes <= entry.end_bytes, where,
                 ": its data ends at byte ", entry.end_bytes,
                 ", before it begins at byte ", entry.begin_bytes, ".");
  NFOLD_CHECK_IO(entry.end_bytes <= data_bytes, where,
                 ": its data ends at byte ", entry.end_bytes,
                 ", but the file holds ", data_bytes,
                 " bytes of data. The file is truncated; fetch or save it "
                 "again.");
  NFOLD_CHECK_IO(entry.end_bytes - entry.begin_bytes == expected_bytes, where,
                 ": ", dtype_name, " of shape ", shape.dump(), " needs ",
                 expected_bytes, " bytes, but \"data_offsets\" span ",
                 entry.end_bytes - entry.begin_bytes, ".");
  return entry;
}

// The format forbids holes, so that no byte of a file goes unread.
void check_coverage(const std::vector<SafetensorsEntry>& entries,
                    std::int64_t data_bytes, const std::string& path) {
  std::int64_t end_bytes = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const SafetensorsEntry& entry = entries[i];
    NFOLD_CHECK_IO(entry.begin_bytes >= end_bytes, path, ": tensors ",
                   shown(entries[i - 1].name), " and ", shown(entry.name),
                   " overlap at byte ", entry.begin_bytes, " of the data.");
    NFOLD_CHECK_IO(entry.begin_bytes == end_bytes, path, ": bytes ", end_bytes,
                   " to ", entry.begin_bytes, " of the data, before tensor ",
                   shown(entry.name), ", belong to no tensor.");
    end_bytes = entry.end_bytes;
  }
  NFOLD_CHECK_IO(end_bytes == data_bytes, path, ": the tensors end at byte ",
                 end_bytes, " of the data, but the file holds ", data_bytes,
                 " bytes of data.");
}

}  // namespace

const char* safetensors_name_of(at::ScalarType dtype) {
  for (const auto& [name, known] : kDtypes) {
    if (dtype == known) return name;
  }
  return nullptr;
}

SafetensorsHeader SafetensorsHeader::parse(std::string_view json,
                                           std::int64_t data_bytes,
                                           const std::string& path) {
  const Json root = parse_json(json, path);
  NFOLD_CHECK_IO(root.is_object(), path,
                 ": the header must be a JSON object, found ", root.type_name(),
                 ".");
  SafetensorsHeader result;
  for (const auto& [name, value] : root.items()) {
    if (name == kMetadataKey) {
      result.metadata = parse_metadata(value, path);
    } else {
      result.entries.push_back(parse_entry(name, value, data_bytes, path));
    }
  }
  std::stable_sort(result.entries.begin(), result.entries.end(),
                   [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                     return std::pair(a.begin_bytes, a.end_bytes) <
                            std::pair(b.begin_bytes, b.end_bytes);
                   });
  check_coverage(result.entries, data_bytes, path);
  return result;
}

std::string SafetensorsHeader::to_json() const {
  Json root = Json::object();
  if (!metadata.empty()) root[kMetadataKey] = metadata;
  for (const SafetensorsEntry& entry : entries) {
    root[entry.name] = {{"dtype", safetensors_name_of(entry.dtype)},
                        {"shape", entry.shape},
                        {"data_offsets", {entry.begin_bytes, entry.end_bytes}}};
  }
  std::string text = root.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace nfold
