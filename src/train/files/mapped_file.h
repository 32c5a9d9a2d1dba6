// File: mapped_file.h
//
// A whole file as read-only memory. Pages are read when they are touched, so
// a file may be larger than memory.
//
//   MappedFile file(path);
//   parse(file.bytes());
//
// Movable; safe to read from any thread. The file must not shrink while it is
// mapped.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace nfold::train {

class MappedFile {
 public:
  // Raises IoError if the file is missing, unreadable or not a plain file. An
  // empty file maps to an empty view.
  explicit MappedFile(std::filesystem::path path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::string_view bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const char* data_ = nullptr;
  std::size_t size_ = 0;
};

// The file's content. Raises IoError as MappedFile does.
std::string read_file(const std::filesystem::path& path);

}  // namespace nfold::train
