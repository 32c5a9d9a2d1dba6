// File: token_file.h
//
// Token files in llm.c's layout: 256 int32 (20240520, version 1, number of
// tokens, zeros), then one uint16 per token. Little-endian.
//
//   TokenFileWriter writer("train.bin");
//   writer.append(ids);
//   writer.close();
//   TokenFile file("train.bin");
//   file.token(0);
//
// TokenFile maps the file, so it may be larger than memory; callable from any
// thread. TokenFileWriter is not thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include "train/data/tokenizer.h"
#include "train/files/mapped_file.h"
#include "train/files/output_file.h"

namespace nfold::train {

inline constexpr std::int32_t kTokenFileMagic = 20240520;
inline constexpr std::int32_t kTokenFileVersion = 1;
inline constexpr std::size_t kTokenFileHeaderBytes = 1024;
// A token is a uint16, and the count in the header an int32.
inline constexpr std::int64_t kMaxTokenFileVocab = 65536;
inline constexpr std::int64_t kMaxTokenFileTokens = 2147483647;

class TokenFile {
 public:
  // Raises IoError that names the path and both numbers if the file is
  // missing, no token file, truncated, or longer than its header says.
  explicit TokenFile(const std::filesystem::path& path);

  std::int64_t num_tokens() const { return num_tokens_; }
  const std::filesystem::path& path() const { return file_.path(); }

  // Copies tokens [begin, begin + size(out)), which must be in the file.
  // Raises IoError that names the position of a token >= vocab_size, unless
  // that is 0.
  void read(std::int64_t begin, std::span<std::int64_t> out,
            std::int64_t vocab_size = 0) const;

  // As read does, for the whole file.
  void check_vocabulary(std::int64_t vocab_size) const;

 private:
  std::uint16_t token_at(std::int64_t index) const;
  void raise_unknown_token(std::int64_t index, std::int64_t vocab_size) const;

  MappedFile file_;
  const char* tokens_ = nullptr;
  std::int64_t num_tokens_ = 0;
};

class TokenFileWriter {
 public:
  explicit TokenFileWriter(const std::filesystem::path& path);

  // Raises c10::ValueError for an id that is no uint16 or when the file would
  // exceed kMaxTokenFileTokens, and IoError when writing fails.
  void append(std::span<const TokenId> ids);
  // Writes the header's count and waits until the file is on disk. Without
  // it, TokenFile refuses the file.
  void close();

  std::int64_t num_tokens() const { return num_tokens_; }

 private:
  OutputFile file_;
  std::int64_t num_tokens_ = 0;
  std::string buffer_;
};

}  // namespace nfold::train
