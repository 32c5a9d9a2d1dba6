#include "train/data/tokenizer.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include "nfold/errors.h"
#include "train/data/byte_alphabet.h"
#include "train/data/pre_tokenizer.h"

namespace nfold::train {
namespace {

// Up to here the quadratic search for the most urgent pair beats a heap.
constexpr std::size_t kShortWord = 64;
// Longer words hardly come twice.
constexpr std::size_t kLongestCachedWord = 64;
constexpr std::size_t kMaxCachedWords = 1 << 20;

constexpr std::uint32_t kNoRank = std::numeric_limits<std::uint32_t>::max();

std::uint64_t key_of(TokenId left, TokenId right) {
  return (static_cast<std::uint64_t>(left) << 32) |
         static_cast<std::uint32_t>(right);
}

}  // namespace

Tokenizer::Tokenizer(TokenizerModel model) : model_(std::move(model)) {
  const auto num_tokens = static_cast<TokenId>(model_.tokens.size());
  const auto is_known = [&](TokenId id) { return id >= 0 && id < num_tokens; };
  is_skipped_.assign(model_.tokens.size(), false);
  std::vector<bool> is_added(model_.tokens.size(), false);
  for (const AddedToken& added : model_.added_tokens) {
    TORCH_CHECK_VALUE(is_known(added.id) && !added.content.empty(),
                      "tokenizer: added token \"", added.content, "\" has id ",
                      added.id, " but there are ", num_tokens, " tokens");
    is_added[added.id] = true;
    is_skipped_[added.id] = added.is_special;
  }
  byte_ids_.fill(-1);
  for (TokenId id = 0; id < num_tokens; ++id) {
    const std::string& token = model_.tokens[id];
    if (token.size() == 1 && !is_added[id]) {
      byte_ids_[static_cast<unsigned char>(token[0])] = id;
    }
  }
  for (std::size_t byte = 0; byte < byte_ids_.size(); ++byte) {
    TORCH_CHECK_VALUE(byte_ids_[byte] >= 0, "tokenizer: byte ", byte,
                      " has no token; a byte-level vocabulary must hold all "
                      "256 bytes");
  }
  merges_.reserve(model_.merges.size());
  for (std::size_t rank = 0; rank < model_.merges.size(); ++rank) {
    const Merge& merge = model_.merges[rank];
    TORCH_CHECK_VALUE(
        is_known(merge.left) && is_known(merge.right) &&
            is_known(merge.merged) &&
            model_.tokens[merge.left] + model_.tokens[merge.right] ==
                model_.tokens[merge.merged],
        "tokenizer: merge ", rank, " does not give a token of the vocabulary");
    merges_.insert_or_assign(
        key_of(merge.left, merge.right),
        RankedMerge{static_cast<std::uint32_t>(rank), merge.merged});
  }
}

std::vector<TokenId> Tokenizer::encode(std::string_view text) const {
  std::vector<TokenId> ids;
  TextEncoder(*this).encode(text, &ids);
  return ids;
}

std::vector<TokenId> Tokenizer::encode_ordinary(std::string_view text) const {
  std::vector<TokenId> ids;
  TextEncoder(*this).encode_ordinary(text, &ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> ids,
                              SpecialTokens special) const {
  std::string text;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const TokenId id = ids[i];
    TORCH_CHECK_VALUE(id >= 0 && id < vocab_size(), "decode: token ", i, " is ",
                      id, " but the vocabulary has ", vocab_size(),
                      " tokens; was it made with another tokenizer?");
    if (special == SpecialTokens::kSkip && is_skipped_[id]) continue;
    text += model_.tokens[id];
  }
  return text;
}

std::int64_t Tokenizer::vocab_size() const {
  return static_cast<std::int64_t>(model_.tokens.size());
}

std::optional<TokenId> Tokenizer::end_of_text() const {
  for (const AddedToken& added : model_.added_tokens) {
    if (added.content == kEndOfText) return added.id;
  }
  return std::nullopt;
}

std::pair<std::string_view, const AddedToken*> Tokenizer::until_added_token(
    std::string_view text, bool is_normalized) const {
  std::size_t first = text.size();
  const AddedToken* found = nullptr;
  for (const AddedToken& added : model_.added_tokens) {
    if (added.is_normalized != is_normalized) continue;
    // Anything that starts at or before `first` is within this window.
    const std::size_t at =
        text.substr(0, first + added.content.size()).find(added.content);
    if (at == std::string_view::npos || at > first) continue;
    const bool is_better = found == nullptr || at < first ||
                           added.content.size() > found->content.size();
    if (is_better) {
      first = at;
      found = &added;
    }
  }
  return {text.substr(0, first), found};
}

const Tokenizer::RankedMerge* Tokenizer::find_merge(TokenId left,
                                                    TokenId right) const {
  const auto entry = merges_.find(key_of(left, right));
  return entry == merges_.end() ? nullptr : &entry->second;
}

void Tokenizer::encode_word(std::string_view word,
                            std::vector<TokenId>* ids) const {
  const std::size_t begin = ids->size();
  for (const char byte : word) {
    ids->push_back(byte_ids_[static_cast<unsigned char>(byte)]);
  }
  if (word.size() <= kShortWord) {
    merge_short(ids, begin);
  } else {
    merge_long(ids, begin);
  }
}

void Tokenizer::merge_short(std::vector<TokenId>* ids,
                            std::size_t begin) const {
  // merge_of[i] is the merge of symbols i and i + 1.
  std::array<RankedMerge, kShortWord> merge_of;
  TokenId* symbols = ids->data() + begin;
  std::size_t size = ids->size() - begin;
  const auto look_up = [&](std::size_t i) {
    const RankedMerge* merge = find_merge(symbols[i], symbols[i + 1]);
    merge_of[i] = merge != nullptr ? *merge : RankedMerge{kNoRank, 0};
  };
  for (std::size_t i = 0; i + 1 < size; ++i) look_up(i);
  while (size > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < size; ++i) {
      if (merge_of[i].rank < merge_of[best].rank) best = i;
    }
    if (merge_of[best].rank == kNoRank) break;
    symbols[best] = merge_of[best].merged;
    std::copy(symbols + best + 2, symbols + size, symbols + best + 1);
    --size;
    for (std::size_t i = best + 1; i + 1 < size; ++i) {
      merge_of[i] = merge_of[i + 1];
    }
    if (best + 1 < size) look_up(best);
    if (best > 0) look_up(best - 1);
  }
  ids->resize(begin + size);
}

void Tokenizer::merge_long(std::vector<TokenId>* ids, std::size_t begin) const {
  // Symbols stay where their first byte was and are linked to their
  // neighbours; one that was merged into its left neighbour has id -1.
  struct Symbol {
    TokenId id;
    std::int64_t previous;
    std::int64_t next;
  };
  struct Candidate {
    std::uint32_t rank;
    std::int64_t at;
    TokenId left;
    TokenId right;
    TokenId merged;
    bool operator>(const Candidate& other) const {
      return std::tie(rank, at) > std::tie(other.rank, other.at);
    }
  };
  const auto size = static_cast<std::int64_t>(ids->size() - begin);
  std::vector<Symbol> symbols;
  symbols.reserve(size);
  for (std::int64_t i = 0; i < size; ++i) {
    symbols.push_back({(*ids)[begin + i], i - 1, i + 1 < size ? i + 1 : -1});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto push = [&](std::int64_t at) {
    const std::int64_t next = symbols[at].next;
    if (next < 0) return;
    const RankedMerge* merge = find_merge(symbols[at].id, symbols[next].id);
    if (merge == nullptr) return;
    queue.push(
        {merge->rank, at, symbols[at].id, symbols[next].id, merge->merged});
  };
  for (std::int64_t i = 0; i < size; ++i) push(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.at];
    const std::int64_t right_at = left.next;
    const bool is_stale = left.id != top.left || right_at < 0 ||
                          symbols[right_at].id != top.right;
    if (is_stale) continue;
    left.id = top.merged;
    left.next = symbols[right_at].next;
    symbols[right_at].id = -1;
    if (left.next >= 0) symbols[left.next].previous = top.at;
    if (left.previous >= 0) push(left.previous);
    push(top.at);
  }
  ids->resize(begin);
  for (std::int64_t i = 0; i >= 0; i = symbols[i].next) {
    ids->push_back(symbols[i].id);
  }
}

std::size_t TextEncoder::WordHash::operator()(std::string_view word) const {
  return XXH3_64bits(word.data(), word.size());
}

void TextEncoder::encode(std::string_view text, std::vector<TokenId>* ids) {
  encode_part(text, /*is_normalized=*/false, ids);
}

void TextEncoder::encode_part(std::string_view text, bool is_normalized,
                              std::vector<TokenId>* ids) {
  while (!text.empty()) {
    const auto [before, added] =
        tokenizer_.until_added_token(text, is_normalized);
    if (!is_normalized) {
      encode_part(before, /*is_normalized=*/true, ids);
    } else {
      encode_ordinary(before, ids);
    }
    if (added == nullptr) return;
    ids->push_back(added->id);
    text.remove_prefix(before.size() + added->content.size());
  }
}

void TextEncoder::encode_ordinary(std::string_view text,
                                  std::vector<TokenId>* ids) {
  while (!text.empty()) {
    const std::string_view word = next_word(text);
    text.remove_prefix(word.size());
    if (word.size() > kLongestCachedWord) {
      tokenizer_.encode_word(word, ids);
      continue;
    }
    auto entry = cache_.find(word);
    if (entry == cache_.end()) {
      if (cache_.size() >= kMaxCachedWords) {
        cache_.clear();
        cached_ids_.clear();
      }
      const auto begin = static_cast<std::uint32_t>(cached_ids_.size());
      tokenizer_.encode_word(word, &cached_ids_);
      const auto size = static_cast<std::uint32_t>(cached_ids_.size()) - begin;
      entry = cache_.emplace(word, CachedWord{begin, size}).first;
    }
    const auto first = cached_ids_.begin() + entry->second.begin;
    ids->insert(ids->end(), first, first + entry->second.size);
  }
}

}  // namespace nfold::train
