// File: bpe_trainer.h
//
// Learns a byte-level BPE vocabulary from text.
//
//   BpeTrainer trainer;
//   for (const auto& file : files) trainer.add_text(read_file(file));
//   Tokenizer tokenizer = trainer.train({.vocab_size = 8192});
//
// The result depends only on how often each word occurs, not on the order of
// the texts: among pairs that are equally frequent, the one with the smaller
// ids is merged first. Ids: <|endoftext|>, the 256 bytes in the order of
// their characters, then the merges, as the `tokenizers` package numbers them.
//
// 12 MB of source code give 8192 tokens in half a second on one core; memory is
// a few times the size of the distinct words. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "train/data/tokenizer.h"

namespace nfold::train {

struct BpeTrainerOptions {
  // At least 257 (the bytes and <|endoftext|>). Fewer come out if the text
  // has no pair left that occurs min_frequency times.
  std::int64_t vocab_size = 8192;
  std::int64_t min_frequency = 2;
  // Called now and then with the tokens so far and vocab_size.
  std::function<void(std::int64_t, std::int64_t)> on_progress = nullptr;
};

class BpeTrainer {
 public:
  // Counts the words of one document.
  void add_text(std::string_view text);
  std::int64_t num_words() const;

  // Raises c10::ValueError for a vocab_size below 257.
  Tokenizer train(const BpeTrainerOptions& options) const;

 private:
  struct WordHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view word) const;
  };
  std::unordered_map<std::string, std::int64_t, WordHash, std::equal_to<>>
      counts_;
};

}  // namespace nfold::train
