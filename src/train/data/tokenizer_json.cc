// Tokenizer <-> tokenizer.json.

#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>

#include "nfold/errors.h"
#include "train/data/byte_alphabet.h"
#include "train/data/tokenizer.h"
#include "train/files/mapped_file.h"

namespace nfold::train {
namespace {

using ParsedJson = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr const char* kRetrain =
    "; nfold reads byte-level BPE as GPT-2 has it. Make a tokenizer with "
    "`nfold data prepare`";

// Reads one tokenizer.json; `origin_` is named in every error.
class TokenizerReader {
 public:
  TokenizerReader(const ParsedJson& json, std::string_view origin)
      : json_(json), origin_(origin) {}

  TokenizerModel read() {
    check_kind();
    read_vocabulary();
    read_added_tokens();
    for (std::size_t id = 0; id < model_.tokens.size(); ++id) {
      check(is_taken_[id], "no token has id ", id, " but one has id ",
            model_.tokens.size() - 1);
    }
    read_merges();
    return std::move(model_);
  }

 private:
  template <typename... Args>
  void check(bool condition, const Args&... args) const {
    NFOLD_CHECK_IO(condition, origin_, ": ", args...);
  }

  const ParsedJson& member(const ParsedJson& json, const char* key) const {
    static const ParsedJson null;
    const auto entry = json.find(key);
    return entry == json.end() ? null : *entry;
  }

  // The key must be absent, null or equal to what encoding here does.
  void check_option(const ParsedJson& json, const char* section,
                    const char* key, const ParsedJson& supported) const {
    const ParsedJson& value = member(json, key);
    TORCH_CHECK_NOT_IMPLEMENTED(
        value.is_null() || value == supported, origin_, ": ", section, ".", key,
        ": expected ", supported.dump(), " but found ", value.dump(), kRetrain);
  }

  void check_kind() const {
    check(json_.is_object() && member(json_, "model").is_object(),
          "expected a tokenizer.json with a section \"model\"");
    const ParsedJson& model = json_["model"];
    check_option(model, "model", "type", "BPE");
    check_option(json_, "tokenizer", "normalizer", nullptr);
    check_option(model, "model", "dropout", nullptr);
    check_option(model, "model", "byte_fallback", false);
    check_option(model, "model", "ignore_merges", false);
    for (const char* key :
         {"continuing_subword_prefix", "end_of_word_suffix"}) {
      check_option(model, "model", key, "");
    }
    const ParsedJson& pre_tokenizer = member(json_, "pre_tokenizer");
    TORCH_CHECK_NOT_IMPLEMENTED(
        pre_tokenizer.is_object() &&
            member(pre_tokenizer, "type") == "ByteLevel",
        origin_, ": pre_tokenizer: expected type ByteLevel but found ",
        pre_tokenizer.dump().substr(0, 200), kRetrain);
    check_option(pre_tokenizer, "pre_tokenizer", "use_regex", true);
    TORCH_CHECK_NOT_IMPLEMENTED(
        member(pre_tokenizer, "add_prefix_space") == false, origin_,
        ": pre_tokenizer.add_prefix_space: expected false", kRetrain);
  }

  void set_token(std::int64_t id, std::string token) {
    constexpr std::int64_t kMostTokens = 1 << 24;
    check(id >= 0 && id < kMostTokens, "token id ", id, " is out of range");
    if (static_cast<std::size_t>(id) >= model_.tokens.size()) {
      model_.tokens.resize(id + 1);
      is_taken_.resize(id + 1, false);
    }
    check(!is_taken_[id], "two tokens have id ", id);
    is_taken_[id] = true;
    model_.tokens[id] = std::move(token);
  }

  void read_vocabulary() {
    const ParsedJson& vocab = member(json_["model"], "vocab");
    check(vocab.is_object() && !vocab.empty(),
          "model.vocab: expected an object of tokens and ids");
    for (const auto& [text, id] : vocab.items()) {
      check(id.is_number_integer(), "model.vocab: id of ", text,
            " is not an integer");
      const auto token_id = id.get<std::int64_t>();
      // A special token stands for itself, so its text need not be made of
      // the alphabet.
      set_token(token_id, from_alphabet(text).value_or(text));
      id_of_[text] = static_cast<TokenId>(token_id);
    }
  }

  void read_added_tokens() {
    const ParsedJson& added_tokens = member(json_, "added_tokens");
    if (added_tokens.is_null()) return;
    check(added_tokens.is_array(), "added_tokens: expected an array");
    for (const ParsedJson& entry : added_tokens) {
      check(entry.is_object() && member(entry, "content").is_string() &&
                member(entry, "id").is_number_integer(),
            "added_tokens: expected objects with id and content");
      AddedToken added;
      added.content = entry["content"].get<std::string>();
      added.id = entry["id"].get<TokenId>();
      added.is_special = entry.value("special", false);
      added.is_normalized = entry.value("normalized", true);
      for (const char* key : {"single_word", "lstrip", "rstrip"}) {
        check_option(entry, "added_tokens", key, false);
      }
      const auto known = id_of_.find(added.content);
      if (known == id_of_.end()) {
        set_token(added.id, added.content);
      } else {
        check(known->second == added.id, "added_tokens: ", added.content,
              " has id ", added.id, " but id ", known->second,
              " in model.vocab");
        model_.tokens[added.id] = added.content;
      }
      model_.added_tokens.push_back(std::move(added));
    }
  }

  TokenId id_of(const std::string& token, std::size_t rank) const {
    const auto entry = id_of_.find(token);
    check(entry != id_of_.end(), "model.merges: entry ", rank, " needs \"",
          token, "\", which is not in model.vocab");
    return entry->second;
  }

  void read_merges() {
    const ParsedJson& merges = member(json_["model"], "merges");
    check(merges.is_array(), "model.merges: expected an array");
    for (std::size_t rank = 0; rank < merges.size(); ++rank) {
      const ParsedJson& entry = merges[rank];
      std::string left;
      std::string right;
      if (entry.is_string()) {  // "a b", as written until tokenizers 0.19
        const auto text = entry.get<std::string>();
        const std::size_t space = text.find(' ');
        check(space != std::string::npos, "model.merges: entry ", rank,
              " is not a pair");
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else {
        check(entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
                  entry[1].is_string(),
              "model.merges: entry ", rank, " is not a pair");
        left = entry[0].get<std::string>();
        right = entry[1].get<std::string>();
      }
      model_.merges.push_back(
          {id_of(left, rank), id_of(right, rank), id_of(left + right, rank)});
    }
  }

  const ParsedJson& json_;
  std::string origin_;
  TokenizerModel model_;
  std::vector<bool> is_taken_;
  std::unordered_map<std::string, TokenId> id_of_;
};

OrderedJson byte_level(bool add_prefix_space) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", true}};
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  return from_json(MappedFile(path).bytes(), path.string());
}

Tokenizer Tokenizer::from_json(std::string_view text, std::string_view origin) {
  const ParsedJson json =
      ParsedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  NFOLD_CHECK_IO(!json.is_discarded(), origin, ": expected JSON but ",
                 text.size(), " bytes do not parse; is the file truncated?");
  TokenizerModel model = TokenizerReader(json, origin).read();
  try {
    return Tokenizer(std::move(model));
  } catch (const c10::ValueError& error) {
    NFOLD_CHECK_IO(false, origin, ": ", message_of(error));
    throw;
  }
}

std::string Tokenizer::to_json() const {
  std::vector<std::string> texts;
  texts.reserve(model_.tokens.size());
  for (const std::string& token : model_.tokens) {
    texts.push_back(to_alphabet(token));
  }
  OrderedJson added_tokens = OrderedJson::array();
  for (const AddedToken& added : model_.added_tokens) {
    texts[added.id] = added.content;
    added_tokens.push_back({{"id", added.id},
                            {"content", added.content},
                            {"single_word", false},
                            {"lstrip", false},
                            {"rstrip", false},
                            {"normalized", added.is_normalized},
                            {"special", added.is_special}});
  }
  // ordered_json searches linearly on insertion by key; a list of pairs does
  // not.
  OrderedJson::object_t vocab;
  vocab.reserve(texts.size());
  for (std::size_t id = 0; id < texts.size(); ++id) {
    vocab.std::vector<std::pair<const std::string, OrderedJson>>::emplace_back(
        texts[id], static_cast<TokenId>(id));
  }
  OrderedJson merges = OrderedJson::array();
  for (const Merge& merge : model_.merges) {
    merges.push_back(
        OrderedJson::array({texts[merge.left], texts[merge.right]}));
  }
  const OrderedJson json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", std::move(added_tokens)},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level(/*add_prefix_space=*/false)},
      {"post_processor", nullptr},
      {"decoder", byte_level(/*add_prefix_space=*/true)},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", OrderedJson(std::move(vocab))},
        {"merges", std::move(merges)}}}};
  return json.dump(1, ' ') + "\n";
}

}  // namespace nfold::train
