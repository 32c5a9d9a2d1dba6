#include "train/data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "nfold/errors.h"
#include "testing/skip.h"
#include "train/data/bpe_trainer.h"
#include "train/data/byte_alphabet.h"
#include "train/data/pre_tokenizer.h"
#include "train/files/test_folder.h"

namespace nfold::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const std::string_view word = next_word(text);
    words.emplace_back(word);
    text.remove_prefix(word.size());
  }
  return words;
}

TEST(PreTokenizer, CutsWordsNumbersAndPunctuation) {
  EXPECT_THAT(words_of("It's 42 degrees, we're at x_1!"),
              ElementsAre("It", "'s", " 42", " degrees", ",", " we", "'re",
                          " at", " x", "_", "1", "!"));
}

TEST(PreTokenizer, LeavesLastSpaceOfRunToNextWord) {
  EXPECT_THAT(words_of("a   b"), ElementsAre("a", "  ", " b"));
  EXPECT_THAT(words_of("a\n\n  b"), ElementsAre("a", "\n\n ", " b"));
  EXPECT_THAT(words_of("a\n\tb"), ElementsAre("a", "\n", "\t", "b"));
  EXPECT_THAT(words_of("a  "), ElementsAre("a", "  "));
}

TEST(PreTokenizer, KnowsUnicodeClasses) {
  EXPECT_THAT(words_of("naïve Straße 東京 ٣٤ 😀"),
              ElementsAre("naïve", " Straße", " 東京", " ٣٤", " 😀"));
  EXPECT_EQ(class_of(0x00A0), CharClass::kSpace);
  EXPECT_EQ(class_of(0x0085), CharClass::kSpace);
  EXPECT_EQ(class_of(0x180E), CharClass::kOther);
  EXPECT_EQ(class_of(0x2028), CharClass::kSpace);
  EXPECT_EQ(class_of(0x00B2), CharClass::kNumber);
  EXPECT_EQ(class_of(0x0301), CharClass::kOther);  // a mark is no letter
}

TEST(PreTokenizer, TakesInvalidBytesAsOther) {
  EXPECT_THAT(words_of("a\xff\xfe b\xc3"),
              ElementsAre("a", "\xff\xfe", " b", "\xc3"));
  // Overlong, surrogate, beyond the last code point: not characters.
  for (const char* bytes : {"\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80"}) {
    EXPECT_FALSE(first_char(bytes).is_valid) << bytes;
  }
}

TEST(ByteAlphabet, IsReversible) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) {
    bytes.push_back(static_cast<char>(byte));
  }
  EXPECT_EQ(from_alphabet(to_alphabet(bytes)), bytes);
  EXPECT_EQ(to_alphabet(" the\n"), "ĠtheĊ");
  EXPECT_EQ(from_alphabet("a b"), std::nullopt);
  EXPECT_EQ(from_alphabet("東"), std::nullopt);
}

Tokenizer train_on(std::initializer_list<std::string_view> texts,
                   std::int64_t vocab_size, std::int64_t min_frequency = 2) {
  BpeTrainer trainer;
  for (const std::string_view text : texts) trainer.add_text(text);
  return trainer.train(
      {.vocab_size = vocab_size, .min_frequency = min_frequency});
}

std::vector<std::string> learned_tokens(const Tokenizer& tokenizer) {
  const auto& tokens = tokenizer.model().tokens;
  return {tokens.begin() + 257, tokens.end()};
}

TEST(BpeTrainer, MergesMostFrequentPairFirst) {
  // "bc" 5 times, then a+"bc" 3 times and "bc"+d 2 times.
  EXPECT_THAT(learned_tokens(train_on({"abc!abc!abc!bcd!bcd"}, 260)),
              ElementsAre("bc", "abc", "bcd"));
}

TEST(BpeTrainer, BreaksTiesBySmallerIds) {
  EXPECT_THAT(learned_tokens(train_on({"zy-zy-ab-ab"}, 259)),
              ElementsAre("ab", "zy"));
}

TEST(BpeTrainer, CountsOverlappingPairsRight) {
  EXPECT_THAT(learned_tokens(train_on({"aaaaa.aaaaa"}, 300)),
              ElementsAre("aa", "aaa", "aaaaa"));
}

TEST(BpeTrainer, StopsWhenNoPairIsFrequentEnough) {
  EXPECT_EQ(train_on({"one two three"}, 1000).vocab_size(), 257 + 1);  // " t"
  EXPECT_EQ(train_on({""}, 1000).vocab_size(), 257);
}

TEST(BpeTrainer, DoesNotDependOnOrderOfTexts) {
  const Tokenizer a = train_on({"some text here", "more text there"}, 280, 1);
  const Tokenizer b = train_on({"more text there", "some text here"}, 280, 1);
  EXPECT_EQ(a.to_json(), b.to_json());
}

TEST(BpeTrainer, RefusesVocabularySmallerThanBytes) {
  EXPECT_THROW(train_on({"text"}, 256), c10::ValueError);
}

// What a tokenizer meets: prose in several scripts, code, runs of spaces,
// emoji with joiners, combining marks, rare planes.
std::vector<std::string> hard_texts() {
  return {
      "The quick brown fox jumps over the lazy dog. It's they're we'll I'd "
      "I'm you've IT'S 'tis 'S rock'n'roll don't",
      "def f(x: int) -> str:\n    return f\"{x!r:>10}\"\n\n\n\nclass A:\n"
      "\tdef __init__(self):\r\n\t\tself.x = [i**2 for i in range(10)]\n",
      "   leading, trailing   \n \n  \t \t mixed\u00a0no-break\u2003em"
      "\u3000ideographic\u2028line\u2029paragraph\u0085next\u180evowel"
      "\u200bzero\ufeffbom",
      "Größe naïve façade Ελληνικά Русский язык עברית العربية हिन्दी ไทย "
      "日本語テキスト 中文文本 한국어 ქართული",
      "１２３ ٤٥٦ ⅷ ½ ² ₃ ① 〇 𝟙𝟚 1,000,000.00e-5 0xDEADBEEF 12abc34",
      "😀👍🏽👨‍👩‍👧‍👦🇩🇪 ❤️ e\u0301 "
      "a\u0308\u0304 "
      "\u200d\u200c "
      "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 "
      "𐍈𐌰 𓀀",
      "<|endoftext|>doc one<|endoftext|>  <|endoftext|>\n<|endoftex|> <|endof",
      std::string("nul\0in the middle", 17),
      std::string(300, ' ') + "x" + std::string(200, '\n') + "y",
      std::string(1000, 'a') + std::string(500, '=') + std::string(333, '-'),
      "",
      " ",
      "\n",
      "'",
      "''s",
      "\xEF\xBB\xBF# -*- coding -*-",
  };
}

std::string random_text(std::size_t num_chars, std::uint64_t seed) {
  // Half from a few kinds of characters, half from all assigned planes.
  const std::u32string common = U"  \n\tabcdeETAOIN'strvelmd019_.,(){}-éßя東";
  std::mt19937_64 random(seed);
  std::string text;
  for (std::size_t i = 0; i < num_chars; ++i) {
    char32_t c = common[random() % common.size()];
    if (random() % 8 == 0) c = random() % 0x3400;
    if (random() % 64 == 0) c = random() % 0x20000;
    if (c >= 0xD800 && c <= 0xDFFF) c = 'x';
    append_utf8(c, &text);
  }
  return text;
}

TEST(Tokenizer, DecodesToSameBytes) {
  const Tokenizer tokenizer =
      train_on({"the cat sat on the mat", random_text(5000, 1)}, 600);
  std::vector<std::string> texts = hard_texts();
  texts.push_back(random_text(20000, 2));
  std::string noise;
  std::mt19937 random(7);
  for (int i = 0; i < 5000; ++i) noise.push_back(static_cast<char>(random()));
  texts.push_back(noise);
  for (const std::string& text : texts) {
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode_ordinary(text)), text);
  }
}

TEST(Tokenizer, LongWordsMergeLikeShortOnes) {
  // 3 symbols of "aa" and so on: the heap and the search must agree where
  // both can be used, so a long word is compared with its own pieces.
  const Tokenizer tokenizer = train_on({"aaaaaaaa bbbb aaaaaaaa"}, 264);
  std::vector<TokenId> ids;
  tokenizer.encode_word(std::string(8 * 32, 'a'), &ids);
  ASSERT_EQ(ids.size(), 32U);
  EXPECT_EQ(tokenizer.decode({ids.data(), 1}), "aaaaaaaa");
  ids.clear();
  tokenizer.encode_word(std::string(65, 'a'), &ids);
  EXPECT_EQ(ids.size(), 9U);
}

TEST(Tokenizer, FindsSpecialTokensOnlyWhenAsked) {
  const Tokenizer tokenizer = train_on({"text"}, 257);
  EXPECT_THAT(tokenizer.encode("<|endoftext|><|endoftext|>"),
              ElementsAre(0, 0));
  EXPECT_EQ(tokenizer.encode_ordinary("<|endoftext|>").size(), 13U);
  EXPECT_EQ(tokenizer.end_of_text(), 0);
  const std::vector<TokenId> ids = {0, tokenizer.encode("t")[0], 0};
  EXPECT_EQ(tokenizer.decode(ids, SpecialTokens::kSkip), "t");
}

TEST(Tokenizer, NamesTokenOutsideVocabulary) {
  const Tokenizer tokenizer = train_on({"text"}, 257);
  const std::vector<TokenId> ids = {1, 257};
  try {
    tokenizer.decode(ids);
    FAIL();
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(message_of(error), HasSubstr("token 1 is 257"));
  }
}

TEST(Tokenizer, SurvivesItsFile) {
  const Tokenizer tokenizer = train_on({random_text(3000, 3)}, 500);
  const Tokenizer read = Tokenizer::from_json(tokenizer.to_json(), "test");
  EXPECT_EQ(read.to_json(), tokenizer.to_json());
  const std::string text = random_text(1000, 4);
  EXPECT_EQ(read.encode(text), tokenizer.encode(text));
}

TEST(Tokenizer, ReadsMergesWrittenAsStrings) {
  const Tokenizer tokenizer = train_on({"banana bandana"}, 262);
  nlohmann::json json = nlohmann::json::parse(tokenizer.to_json());
  for (auto& merge : json["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  EXPECT_EQ(Tokenizer::from_json(json.dump(), "test").to_json(),
            tokenizer.to_json());
}

TEST(Tokenizer, RefusesOtherKinds) {
  const auto json = nlohmann::json::parse(train_on({"x"}, 257).to_json());
  const auto expect_refused = [&](const char* pointer, nlohmann::json value) {
    nlohmann::json changed = json;
    changed[nlohmann::json::json_pointer(pointer)] = std::move(value);
    EXPECT_THROW(Tokenizer::from_json(changed.dump(), "t.json"),
                 c10::NotImplementedError)
        << pointer;
  };
  expect_refused("/model/type", "Unigram");
  expect_refused("/normalizer", {{"type", "NFC"}});
  expect_refused("/pre_tokenizer/type", "Whitespace");
  expect_refused("/pre_tokenizer/use_regex", false);
  expect_refused("/pre_tokenizer/add_prefix_space", true);
  expect_refused("/model/byte_fallback", true);
  expect_refused("/model/ignore_merges", true);
  expect_refused("/model/dropout", 0.1);
  expect_refused("/added_tokens/0/lstrip", true);
}

TEST(Tokenizer, NamesFileThatIsBroken) {
  const TestFolder folder;
  const std::string json = train_on({"aaaa"}, 258).to_json();
  const auto expect_broken = [&](const std::string& text, const char* what) {
    std::ofstream(folder / "t.json") << text;
    try {
      Tokenizer::load(folder / "t.json");
      FAIL() << what;
    } catch (const IoError& error) {
      EXPECT_THAT(message_of(error), HasSubstr("t.json: "));
      EXPECT_THAT(message_of(error), HasSubstr(what));
    }
  };
  expect_broken("", "do not parse");
  expect_broken(json.substr(0, json.size() / 2), "do not parse");
  expect_broken("[]", "section \"model\"");
  const auto changed = [&](const char* pointer, nlohmann::json value) {
    auto parsed = nlohmann::json::parse(json);
    parsed[nlohmann::json::json_pointer(pointer)] = std::move(value);
    return parsed.dump();
  };
  expect_broken(changed("/model/vocab/a", 1000), "no token has id");
  expect_broken(changed("/model/vocab/a", -1), "out of range");
  expect_broken(changed("/model/vocab/a", "x"), "not an integer");
  expect_broken(changed("/model/vocab/a", 3), "two tokens have id 3");
  expect_broken(changed("/model/merges/0", {"a", "no"}), "needs \"no\"");
  expect_broken(changed("/model/merges/0", 5), "not a pair");
  expect_broken(changed("/model/vocab", nlohmann::json::object()), "vocab");
  EXPECT_THROW(Tokenizer::load(folder / "missing.json"), IoError);
}

// --- Against the `tokenizers` package ---------------------------------------

class TokenizersPackage : public testing::Test {
 protected:
  void SetUp() override {
    const std::string probe =
        std::string(NFOLD_TEST_PYTHON) + " -c 'import tokenizers' 2>/dev/null";
    if (std::system(probe.c_str()) != 0) {
      NFOLD_SKIP(NFOLD_TEST_PYTHON " has no package tokenizers");
    }
  }

  void write_documents(const std::vector<std::string>& texts,
                       const Tokenizer* tokenizer) {
    nlohmann::json documents = nlohmann::json::array();
    for (const std::string& text : texts) {
      nlohmann::json document = {{"text", text}};
      if (tokenizer != nullptr) document["ids"] = tokenizer->encode(text);
      documents.push_back(std::move(document));
    }
    std::ofstream(folder_ / "documents.json") << documents;
    if (tokenizer != nullptr) {
      std::ofstream(folder_ / "tokenizer.json") << tokenizer->to_json();
    }
  }

  int run(const std::string& command) {
    const std::string line = std::string(NFOLD_TEST_PYTHON) + " " +
                             NFOLD_TEST_SOURCE_DIR "/check_tokenizer.py " +
                             command + " " +
                             (folder_ / "tokenizer.json").string() + " " +
                             (folder_ / "documents.json").string();
    return std::system(line.c_str());
  }

  std::vector<std::string> texts() {
    std::vector<std::string> texts = hard_texts();
    texts.push_back(random_text(150'000, 11));
    std::ifstream source(NFOLD_TEST_SOURCE_DIR "/tokenizer_test.cc");
    texts.emplace_back(std::istreambuf_iterator<char>(source),
                       std::istreambuf_iterator<char>());
    return texts;
  }

  TestFolder folder_;
};

TEST_F(TokenizersPackage, EncodesAndDecodesIdentically) {
  BpeTrainer trainer;
  for (const std::string& text : texts()) trainer.add_text(text);
  const Tokenizer tokenizer = trainer.train({.vocab_size = 3000});
  write_documents(texts(), &tokenizer);
  EXPECT_EQ(run("encode"), 0);
}

TEST_F(TokenizersPackage, CutsAtEveryCharacterIdentically) {
  // "ax", "1x" and "!x" are one word or two, by the class of x. The merges
  // make that visible in the ids.
  std::string text;
  // Beyond U+1F000 nearly all are ideographs: some of them will do.
  for (char32_t c = 0x80; c < 0x32400; c += c < 0x1F000 ? 1 : 13) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    for (const char before : {'a', '1', '!'}) {
      text.push_back(before);
      append_utf8(c, &text);
    }
  }
  BpeTrainer trainer;
  trainer.add_text(text);
  const Tokenizer tokenizer = trainer.train({.vocab_size = 1000});
  write_documents({text}, &tokenizer);
  EXPECT_EQ(run("encode"), 0);
}

TEST_F(TokenizersPackage, LearnsSameMerges) {
  // Without the text that holds the special token, which the package cuts
  // out before it counts words.
  std::vector<std::string> documents = texts();
  std::erase_if(documents, [](const std::string& text) {
    return text.find(kEndOfText) != std::string::npos;
  });
  BpeTrainer trainer;
  for (const std::string& text : documents) trainer.add_text(text);
  const Tokenizer tokenizer = trainer.train({.vocab_size = 2000});
  write_documents(documents, &tokenizer);
  EXPECT_EQ(run("train"), 0);
}

TEST_F(TokenizersPackage, ItsFilesAreReadAndEncodeIdentically) {
  write_documents(texts(), nullptr);
  ASSERT_EQ(run("make"), 0);
  const Tokenizer tokenizer = Tokenizer::load(folder_ / "tokenizer.json");
  std::ifstream file(folder_ / "documents.json");
  for (const auto& document : nlohmann::json::parse(file)) {
    EXPECT_EQ(tokenizer.encode(document["text"].get<std::string>()),
              document["ids"].get<std::vector<TokenId>>());
  }
}

}  // namespace
}  // namespace nfold::train
