// File: output_file.h
//
// A file being written, where every failure is an IoError with the path. Use
// it for whatever must not get lost in silence when a disk fills up.
//
//   OutputFile file(path);
//   file.write(header);
//   file.write(body);
//   file.close(Sync::kYes);   // or the error appears nowhere
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace nfold::train {

enum class OpenMode : std::uint8_t { kReplace, kAppend };
enum class Sync : std::uint8_t { kNo, kYes };

class OutputFile {
 public:
  // Creates the file. Raises IoError if that is not possible.
  explicit OutputFile(std::filesystem::path path,
                      OpenMode mode = OpenMode::kReplace);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  // Writes out what is buffered and drops errors; call close() before.
  ~OutputFile();

  // Buffers the bytes; writes when a few hundred KiB have gathered.
  void write(std::string_view bytes);
  // Hands everything written so far to the operating system.
  void flush();
  // Writes at an offset that was already written, such as a header whose
  // content is known last.
  void rewrite(std::uint64_t offset, std::string_view bytes);
  // Flushes, and with kYes waits until the file is on disk. Idempotent.
  void close(Sync sync = Sync::kNo);

  std::uint64_t size_bytes() const { return size_bytes_; }
  const std::filesystem::path& path() const { return path_; }

 private:
  void write_now(std::string_view bytes);

  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_bytes_ = 0;
  std::string buffer_;
};

// Replaces the file's content in one step: a reader, or a crash in between,
// sees either the old file or the new one.
void write_file_atomically(const std::filesystem::path& path,
                           std::string_view content);

}  // namespace nfold::train
