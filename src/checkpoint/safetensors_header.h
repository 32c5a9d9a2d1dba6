// File: safetensors_header.h
//
// The JSON header of a safetensors file as plain data: parsing with every
// check that the format asks for, and writing. No file access.
//
//   auto header = SafetensorsHeader::parse(json, data_bytes, "a.safetensors");
//
// Pure; thread-safe.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace nfold {

struct SafetensorsEntry {
  std::string name;
  at::ScalarType dtype;
  std::vector<std::int64_t> shape;
  // Range in the data part.
  std::int64_t begin_bytes = 0;
  std::int64_t end_bytes = 0;
};

struct SafetensorsHeader {
  // Readers of the format refuse more than this.
  static constexpr std::uint64_t kMaxBytes = 100'000'000;

  // In the order of the data, which the entries cover without gap or overlap.
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;

  // `data_bytes`: size of the data part. Raises nfold::IoError that begins
  // with `path`.
  static SafetensorsHeader parse(std::string_view json, std::int64_t data_bytes,
                                 const std::string& path);
  // Padded with spaces to a multiple of 8 bytes.
  std::string to_json() const;
};

// "F32", "BF16", ...; nullptr for a dtype that the format lacks.
const char* safetensors_name_of(at::ScalarType dtype);

}  // namespace nfold
