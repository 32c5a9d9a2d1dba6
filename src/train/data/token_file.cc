#include "train/data/token_file.h"

#include <array>
#include <bit>
#include <cstring>
#include <string>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

static_assert(std::endian::native == std::endian::little,
              "token files are little-endian");

constexpr const char* kPrepareAgain =
    "; make it again with `nfold data prepare`";

std::string make_header(std::int64_t num_tokens) {
  std::array<std::int32_t, kTokenFileHeaderBytes / 4> header{};
  header[0] = kTokenFileMagic;
  header[1] = kTokenFileVersion;
  header[2] = static_cast<std::int32_t>(num_tokens);
  return {reinterpret_cast<const char*>(header.data()), kTokenFileHeaderBytes};
}

}  // namespace

TokenFile::TokenFile(const std::filesystem::path& path) : file_(path) {
  const std::string_view bytes = file_.bytes();
  NFOLD_CHECK_IO(bytes.size() >= kTokenFileHeaderBytes, path.string(),
                 ": expected a token file, which begins with ",
                 kTokenFileHeaderBytes, " bytes of header, but it has ",
                 bytes.size(), " bytes", kPrepareAgain);
  std::array<std::int32_t, 3> header{};
  std::memcpy(header.data(), bytes.data(), sizeof(header));
  NFOLD_CHECK_IO(header[0] == kTokenFileMagic, path.string(),
                 ": expected a token file, which begins with ", kTokenFileMagic,
                 ", but it begins with ", header[0], kPrepareAgain);
  NFOLD_CHECK_IO(header[1] == kTokenFileVersion, path.string(),
                 ": expected token file version ", kTokenFileVersion,
                 " but found ", header[1], kPrepareAgain);
  num_tokens_ = header[2];
  const auto found =
      static_cast<std::int64_t>(bytes.size() - kTokenFileHeaderBytes);
  NFOLD_CHECK_IO(
      num_tokens_ >= 0 && found == num_tokens_ * 2, path.string(),
      ": its header promises ", num_tokens_, " tokens in ", num_tokens_ * 2,
      " bytes but ", found, " bytes follow; the file is ",
      found < num_tokens_ * 2 ? "truncated" : "damaged", kPrepareAgain);
  tokens_ = bytes.data() + kTokenFileHeaderBytes;
}

std::uint16_t TokenFile::token_at(std::int64_t index) const {
  std::uint16_t token = 0;
  std::memcpy(&token, tokens_ + index * 2, sizeof(token));
  return token;
}

void TokenFile::read(std::int64_t begin, std::span<std::int64_t> out,
                     std::int64_t vocab_size) const {
  const auto count = static_cast<std::int64_t>(out.size());
  TORCH_CHECK_VALUE(begin >= 0 && begin + count <= num_tokens_, path().string(),
                    ": tokens ", begin, " to ", begin + count,
                    " were asked for but it has ", num_tokens_);
  const std::int64_t limit = vocab_size == 0 ? kMaxTokenFileVocab : vocab_size;
  bool is_known = true;
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = token_at(begin + i);
    is_known &= out[i] < limit;
  }
  if (is_known) return;
  for (std::int64_t i = 0; i < count; ++i) {
    if (out[i] >= limit) raise_unknown_token(begin + i, vocab_size);
  }
}

void TokenFile::check_vocabulary(std::int64_t vocab_size) const {
  if (vocab_size >= kMaxTokenFileVocab) return;
  for (std::int64_t i = 0; i < num_tokens_; ++i) {
    if (token_at(i) >= vocab_size) raise_unknown_token(i, vocab_size);
  }
}

void TokenFile::raise_unknown_token(std::int64_t index,
                                    std::int64_t vocab_size) const {
  NFOLD_CHECK_IO(false, path().string(), ": token ", index, " of ", num_tokens_,
                 " is ", token_at(index), " but the vocabulary has ",
                 vocab_size,
                 " entries; set model.vocab_size to at least that of the "
                 "tokenizer the file was made with, or make the file again");
}

TokenFileWriter::TokenFileWriter(const std::filesystem::path& path)
    : file_(path) {
  // A count that no file can have, so that a file whose writer was
  // interrupted is not taken for a complete one.
  file_.write(make_header(-1));
}

void TokenFileWriter::append(std::span<const TokenId> ids) {
  const auto count = static_cast<std::int64_t>(ids.size());
  TORCH_CHECK_VALUE(num_tokens_ + count <= kMaxTokenFileTokens,
                    file_.path().string(), ": a token file holds at most ",
                    kMaxTokenFileTokens, " tokens; split the input");
  buffer_.resize(ids.size() * 2);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    TORCH_CHECK_VALUE(
        ids[i] >= 0 && ids[i] < kMaxTokenFileVocab, file_.path().string(),
        ": token ", num_tokens_ + static_cast<std::int64_t>(i), " is ", ids[i],
        " but a token file holds 0 to ", kMaxTokenFileVocab - 1);
    const auto token = static_cast<std::uint16_t>(ids[i]);
    std::memcpy(buffer_.data() + i * 2, &token, sizeof(token));
  }
  file_.write(buffer_);
  num_tokens_ += count;
}

void TokenFileWriter::close() {
  file_.rewrite(0, make_header(num_tokens_));
  file_.close(Sync::kYes);
}

}  // namespace nfold::train
