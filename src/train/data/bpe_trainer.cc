#include "train/data/bpe_trainer.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

#include "nfold/errors.h"
#include "train/data/byte_alphabet.h"
#include "train/data/pre_tokenizer.h"

namespace nfold::train {
namespace {

constexpr std::int64_t kNumBytes = 256;
constexpr std::int64_t kNumFirstTokens = kNumBytes + 1;  // and <|endoftext|>
constexpr std::int64_t kProgressInterval = 256;

struct Word {
  std::vector<TokenId> symbols;
  std::int64_t count = 0;
};

struct Pair {
  TokenId left = 0;
  TokenId right = 0;
  std::uint64_t key() const {
    return (static_cast<std::uint64_t>(left) << 32) |
           static_cast<std::uint32_t>(right);
  }
};

// How often a pair occurs, and the words that may hold it: all that do, and
// some where another merge has taken it since.
struct PairStatistics {
  std::int64_t count = 0;
  std::vector<std::uint32_t> words;
};

struct Candidate {
  std::int64_t count = 0;
  Pair pair;
  bool operator<(const Candidate& other) const {
    return std::make_tuple(count, -pair.left, -pair.right) <
           std::make_tuple(other.count, -other.pair.left, -other.pair.right);
  }
};

// The merging itself: pair counts are kept up to date instead of being
// counted again, and a heap gives the most frequent pair. Counts in the heap
// may be out of date, but only too high, so a candidate whose count has
// fallen goes back with the right one.
class MergeLoop {
 public:
  MergeLoop(std::vector<Word> words, TokenizerModel model)
      : words_(std::move(words)), model_(std::move(model)) {
    for (std::size_t id = 0; id < model_.tokens.size(); ++id) {
      id_of_.emplace(model_.tokens[id], static_cast<TokenId>(id));
    }
    for (std::uint32_t w = 0; w < words_.size(); ++w) {
      const std::vector<TokenId>& symbols = words_[w].symbols;
      for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
        add({symbols[i], symbols[i + 1]}, words_[w].count, w);
      }
    }
    push_changed();
  }

  TokenizerModel run(const BpeTrainerOptions& options) {
    while (std::ssize(model_.tokens) < options.vocab_size && !queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const auto entry = pairs_.find(top.pair.key());
      if (entry == pairs_.end()) continue;
      const std::int64_t count = entry->second.count;
      if (count != top.count) {
        if (count > 0) queue_.push({count, top.pair});
        continue;
      }
      if (count < options.min_frequency) break;
      const std::vector<std::uint32_t> words = std::move(entry->second.words);
      pairs_.erase(entry);
      merge(top.pair, words);
      if (options.on_progress &&
          std::ssize(model_.tokens) % kProgressInterval == 0) {
        options.on_progress(std::ssize(model_.tokens), options.vocab_size);
      }
    }
    return std::move(model_);
  }

 private:
  void add(Pair pair, std::int64_t count, std::uint32_t word) {
    PairStatistics& statistics = pairs_[pair.key()];
    statistics.count += count;
    if (statistics.words.empty() || statistics.words.back() != word) {
      statistics.words.push_back(word);
    }
    changed_.push_back(pair);
  }

  void subtract(Pair pair, std::int64_t count) {
    const auto entry = pairs_.find(pair.key());
    // Absent: it is the pair that is being merged ("aaa").
    if (entry != pairs_.end()) entry->second.count -= count;
  }

  void push_changed() {
    std::sort(changed_.begin(), changed_.end(),
              [](const Pair& a, const Pair& b) { return a.key() < b.key(); });
    std::uint64_t previous = 0;
    bool is_first = true;
    for (const Pair& pair : changed_) {
      if (!is_first && pair.key() == previous) continue;
      previous = pair.key();
      is_first = false;
      queue_.push({pairs_.at(pair.key()).count, pair});
    }
    changed_.clear();
  }

  void merge(Pair pair, const std::vector<std::uint32_t>& words) {
    const std::string text =
        model_.tokens[pair.left] + model_.tokens[pair.right];
    // "ab" + "c" may follow "a" + "bc": one token, two ways to make it.
    const auto [entry, is_new] =
        id_of_.emplace(text, static_cast<TokenId>(model_.tokens.size()));
    const TokenId merged = entry->second;
    if (is_new) model_.tokens.push_back(text);
    model_.merges.push_back({pair.left, pair.right, merged});
    for (const std::uint32_t w : words) merge_in_word(pair, merged, w);
    push_changed();
  }

  void merge_in_word(Pair pair, TokenId merged, std::uint32_t w) {
    std::vector<TokenId>& symbols = words_[w].symbols;
    const std::int64_t count = words_[w].count;
    std::size_t out = 0;
    for (std::size_t i = 0; i < symbols.size();) {
      const bool is_pair = i + 1 < symbols.size() && symbols[i] == pair.left &&
                           symbols[i + 1] == pair.right;
      if (!is_pair) {
        symbols[out++] = symbols[i++];
        continue;
      }
      if (out > 0) {
        subtract({symbols[out - 1], pair.left}, count);
        add({symbols[out - 1], merged}, count, w);
      }
      if (i + 2 < symbols.size()) {
        subtract({pair.right, symbols[i + 2]}, count);
        add({merged, symbols[i + 2]}, count, w);
      }
      symbols[out++] = merged;
      i += 2;
    }
    symbols.resize(out);
  }

  std::vector<Word> words_;
  TokenizerModel model_;
  std::unordered_map<std::string, TokenId> id_of_;
  std::unordered_map<std::uint64_t, PairStatistics> pairs_;
  std::vector<Pair> changed_;
  std::priority_queue<Candidate> queue_;
};

// <|endoftext|> and the bytes, in the order of the characters that stand for
// them.
TokenizerModel first_tokens() {
  std::array<int, kNumBytes> bytes{};
  std::iota(bytes.begin(), bytes.end(), 0);
  std::sort(bytes.begin(), bytes.end(), [](int a, int b) {
    return alphabet_char(static_cast<std::uint8_t>(a)) <
           alphabet_char(static_cast<std::uint8_t>(b));
  });
  TokenizerModel model;
  model.tokens.emplace_back(kEndOfText);
  for (const int byte : bytes) {
    model.tokens.emplace_back(1, static_cast<char>(byte));
  }
  model.added_tokens.push_back({.id = 0, .content = std::string(kEndOfText)});
  return model;
}

}  // namespace

std::size_t BpeTrainer::WordHash::operator()(std::string_view word) const {
  return XXH3_64bits(word.data(), word.size());
}

void BpeTrainer::add_text(std::string_view text) {
  while (!text.empty()) {
    const std::string_view word = next_word(text);
    text.remove_prefix(word.size());
    const auto entry = counts_.find(word);
    if (entry == counts_.end()) {
      counts_.emplace(word, 1);
    } else {
      ++entry->second;
    }
  }
}

std::int64_t BpeTrainer::num_words() const {
  return static_cast<std::int64_t>(counts_.size());
}

Tokenizer BpeTrainer::train(const BpeTrainerOptions& options) const {
  TORCH_CHECK_VALUE(options.vocab_size >= kNumFirstTokens,
                    "vocab_size: expected at least ", kNumFirstTokens,
                    " (256 bytes and ", kEndOfText, ") but found ",
                    options.vocab_size);
  TokenizerModel model = first_tokens();
  std::array<TokenId, kNumBytes> byte_ids{};
  for (std::size_t id = 1; id < model.tokens.size(); ++id) {
    byte_ids[static_cast<unsigned char>(model.tokens[id][0])] =
        static_cast<TokenId>(id);
  }
  // Sorted, so that nothing hangs on the order of a hash table.
  std::vector<std::pair<std::string_view, std::int64_t>> sorted(counts_.begin(),
                                                                counts_.end());
  std::sort(sorted.begin(), sorted.end());
  std::vector<Word> words;
  words.reserve(sorted.size());
  for (const auto& [text, count] : sorted) {
    Word word{.symbols = {}, .count = count};
    word.symbols.reserve(text.size());
    for (const char byte : text) {
      word.symbols.push_back(byte_ids[static_cast<unsigned char>(byte)]);
    }
    words.push_back(std::move(word));
  }
  return Tokenizer(MergeLoop(std::move(words), std::move(model)).run(options));
}

}  // namespace nfold::train
