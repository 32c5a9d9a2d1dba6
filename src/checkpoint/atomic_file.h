// File: atomic_file.h
//
// A file that appears under its name only when it is complete.
//
//   AtomicFile file("run/model.safetensors");
//   file.write(data, num_bytes);
//   file.commit();
//
// Without commit() the temporary file is removed and the target is untouched.
// Not thread-safe. Errors are nfold::IoError and name the target.
#pragma once

#include <cstddef>
#include <string>

namespace nfold {

// "No space left on device" for ENOSPC.
std::string error_text(int error);

class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, std::size_t num_bytes);
  // Flushes to the disk and renames.
  void commit();

 private:
  const std::string path_;
  const std::string temporary_path_;
  int descriptor_ = -1;
  bool is_committed_ = false;
};

}  // namespace nfold
