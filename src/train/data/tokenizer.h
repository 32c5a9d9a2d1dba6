// File: tokenizer.h
//
// Byte-level BPE: text <-> token ids, lossless for any bytes, kept as a
// Hugging Face tokenizer.json that the `tokenizers` package loads and encodes
// with identically.
//
//   Tokenizer tokenizer = Tokenizer::load("data/tokenizer.json");
//   std::vector<TokenId> ids = tokenizer.encode("def f():");
//   std::string text = tokenizer.decode(ids);
//
// Immutable; callable from any thread. For much text use a TextEncoder, which
// remembers the words it has seen. Training one: bpe_trainer.h.
//
// Not supported, and an error on loading: other model types, normalizers,
// other pre-tokenizers, prefix spaces, dropout, byte fallback.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace nfold::train {

using TokenId = std::int32_t;

// Between documents, and before the first.
inline constexpr std::string_view kEndOfText = "<|endoftext|>";

// Two neighbours and the token that replaces them.
struct Merge {
  TokenId left = 0;
  TokenId right = 0;
  TokenId merged = 0;
};

// A token that is found in the text before any cutting into words.
struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool is_special = true;      // dropped by decode(..., kSkip)
  bool is_normalized = false;  // found after those that are not
};

struct TokenizerModel {
  // Bytes of each token by id. Ids of added tokens hold their content.
  std::vector<std::string> tokens;
  std::vector<Merge> merges;  // the earlier, the more urgent
  std::vector<AddedToken> added_tokens;
};

enum class SpecialTokens : std::uint8_t { kKeep, kSkip };

class Tokenizer {
 public:
  // Raises c10::ValueError if the model is inconsistent, such as a byte
  // without a token.
  explicit Tokenizer(TokenizerModel model);

  // Reads a tokenizer.json of this kind, ours or one that the `tokenizers`
  // package wrote. Raises IoError with the path if it is missing or broken
  // and c10::NotImplementedError if it is of another kind.
  static Tokenizer load(const std::filesystem::path& path);
  static Tokenizer from_json(std::string_view json, std::string_view origin);
  std::string to_json() const;

  // Added tokens such as <|endoftext|> in the text become their id.
  std::vector<TokenId> encode(std::string_view text) const;
  // Every character is text: what a document says cannot end it.
  std::vector<TokenId> encode_ordinary(std::string_view text) const;

  // The bytes of the tokens, one after the other. A token may hold part of a
  // character, so the result need not be valid UTF-8. Raises c10::ValueError
  // for an id outside the vocabulary.
  std::string decode(std::span<const TokenId> ids,
                     SpecialTokens special = SpecialTokens::kKeep) const;

  // Largest id + 1.
  std::int64_t vocab_size() const;
  // Id of <|endoftext|>, if the tokenizer has it.
  std::optional<TokenId> end_of_text() const;
  const TokenizerModel& model() const { return model_; }

  // The tokens of one word; appends to `ids`.
  void encode_word(std::string_view word, std::vector<TokenId>* ids) const;
  // The part of the text before the first added token, and that token; all
  // of the text and null if there is none.
  std::pair<std::string_view, const AddedToken*> until_added_token(
      std::string_view text, bool is_normalized) const;

 private:
  struct RankedMerge {
    std::uint32_t rank;
    TokenId merged;
  };
  const RankedMerge* find_merge(TokenId left, TokenId right) const;
  void merge_short(std::vector<TokenId>* ids, std::size_t begin) const;
  void merge_long(std::vector<TokenId>* ids, std::size_t begin) const;

  TokenizerModel model_;
  std::array<TokenId, 256> byte_ids_{};
  std::unordered_map<std::uint64_t, RankedMerge> merges_;
  std::vector<bool> is_skipped_;  // by id: special
};

// Encodes many texts with one tokenizer, which must outlive it. Holds a cache
// of words: one per thread.
class TextEncoder {
 public:
  explicit TextEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // Append to `ids` what Tokenizer::encode and encode_ordinary return.
  void encode(std::string_view text, std::vector<TokenId>* ids);
  void encode_ordinary(std::string_view text, std::vector<TokenId>* ids);

 private:
  void encode_part(std::string_view text, bool is_normalized,
                   std::vector<TokenId>* ids);

  struct CachedWord {
    std::uint32_t begin;
    std::uint32_t size;
  };
  struct WordHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view word) const;
  };

  const Tokenizer& tokenizer_;
  std::unordered_map<std::string, CachedWord, WordHash, std::equal_to<>> cache_;
  std::vector<TokenId> cached_ids_;
};

}  // namespace nfold::train
