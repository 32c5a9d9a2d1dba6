#include "train/data/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "nfold/errors.h"
#include "train/data/newer_characters.h"

namespace nfold::train {
namespace {

constexpr char32_t kNumCodePoints = 0x110000;

bool is_surrogate(char32_t c) { return c >= 0xD800 && c <= 0xDFFF; }

// One class for each code point, found by one pass of PCRE2 over all of them.
// \s of PCRE2 also matches U+180E, which Unicode has not counted as space for
// a decade, so the class is spelled out.
std::vector<CharClass> make_class_table() {
  std::string all;
  std::vector<char32_t> code_points;
  std::vector<std::uint32_t> char_at;  // byte offset -> index of character
  for (char32_t c = 0; c < kNumCodePoints; ++c) {
    if (is_surrogate(c)) continue;
    append_utf8(c, &all);
    char_at.resize(all.size(), static_cast<std::uint32_t>(code_points.size()));
    code_points.push_back(c);
  }
  char_at.push_back(static_cast<std::uint32_t>(code_points.size()));

  const std::string pattern =
      R"((\p{L}++)|(\p{N}++)|([\p{Z}\x09-\x0d\x{85}]++))";
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  const std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                    pattern.size(), PCRE2_UTF | PCRE2_UCP, &error,
                    &error_offset, nullptr),
      &pcre2_code_free);
  TORCH_INTERNAL_ASSERT(code != nullptr, "PCRE2 without Unicode: error ", error,
                        " at ", error_offset);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>
      match(pcre2_match_data_create_from_pattern(code.get(), nullptr),
            &pcre2_match_data_free);

  std::vector<CharClass> table(kNumCodePoints, CharClass::kOther);
  constexpr std::array kClasses = {CharClass::kLetter, CharClass::kNumber,
                                   CharClass::kSpace};
  PCRE2_SIZE offset = 0;
  while (true) {
    const int last_group = pcre2_match(
        code.get(), reinterpret_cast<PCRE2_SPTR>(all.data()), all.size(),
        offset, PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (last_group < 0) break;
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
    for (std::uint32_t i = char_at[range[0]]; i < char_at[range[1]]; ++i) {
      table[code_points[i]] = kClasses.at(last_group - 2);
    }
    offset = range[1];
  }
  const auto add = [&](const auto& ranges, CharClass char_class) {
    for (const CodePointRange& range : ranges) {
      std::fill(table.begin() + range.first, table.begin() + range.last + 1,
                char_class);
    }
  };
  add(kNewerLetters, CharClass::kLetter);
  add(kNewerNumbers, CharClass::kNumber);
  return table;
}

struct ClassifiedChar {
  CharClass char_class = CharClass::kOther;
  std::size_t num_bytes = 0;
};

ClassifiedChar classify_first(std::string_view text) {
  const Utf8Char c = first_char(text);
  return {c.is_valid ? class_of(c.code_point) : CharClass::kOther, c.num_bytes};
}

// Bytes of the characters from `begin` on that are of the class.
std::size_t end_of_run(std::string_view text, std::size_t begin,
                       CharClass char_class) {
  std::size_t end = begin;
  while (end < text.size()) {
    const ClassifiedChar next = classify_first(text.substr(end));
    if (next.char_class != char_class) break;
    end += next.num_bytes;
  }
  return end;
}

// Length of 's 't 're 've 'm 'll 'd at the start of the text, else 0.
std::size_t contraction_length(std::string_view text) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  switch (text[1]) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return 2;
    default:
      break;
  }
  const std::string_view three = text.substr(1, 2);
  return three == "re" || three == "ve" || three == "ll" ? 3 : 0;
}

// All of the run but its last character, which belongs to the word behind it;
// all of it at the end of the text or when it is one character.
std::size_t space_length(std::string_view text) {
  std::size_t end = 0;
  std::size_t last_char = 0;
  while (end < text.size()) {
    const ClassifiedChar next = classify_first(text.substr(end));
    if (next.char_class != CharClass::kSpace) {
      return last_char == 0 ? end : last_char;
    }
    last_char = end;
    end += next.num_bytes;
  }
  return end;
}

}  // namespace

void append_utf8(char32_t c, std::string* text) {
  const auto push = [text](char32_t byte) {
    text->push_back(static_cast<char>(static_cast<unsigned char>(byte)));
  };
  if (c < 0x80) {
    push(c);
  } else if (c < 0x800) {
    push(0xC0 | (c >> 6));
    push(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    push(0xE0 | (c >> 12));
    push(0x80 | ((c >> 6) & 0x3F));
    push(0x80 | (c & 0x3F));
  } else {
    push(0xF0 | (c >> 18));
    push(0x80 | ((c >> 12) & 0x3F));
    push(0x80 | ((c >> 6) & 0x3F));
    push(0x80 | (c & 0x3F));
  }
}

Utf8Char first_char(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return static_cast<unsigned char>(text[i]);
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1, true};
  const Utf8Char invalid{lead, 1, false};
  std::size_t num_bytes = 0;
  char32_t least = 0;
  char32_t code_point = 0;
  if (lead >= 0xC2 && lead <= 0xDF) {
    num_bytes = 2, least = 0x80, code_point = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    num_bytes = 3, least = 0x800, code_point = lead & 0x0F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    num_bytes = 4, least = 0x10000, code_point = lead & 0x07;
  } else {
    return invalid;
  }
  if (text.size() < num_bytes) return invalid;
  for (std::size_t i = 1; i < num_bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return invalid;
    code_point = (code_point << 6) | (byte(i) & 0x3F);
  }
  if (code_point < least || code_point >= kNumCodePoints ||
      is_surrogate(code_point)) {
    return invalid;
  }
  return {code_point, static_cast<std::uint8_t>(num_bytes), true};
}

CharClass class_of(char32_t code_point) {
  static const std::vector<CharClass> table = make_class_table();
  return code_point < kNumCodePoints ? table[code_point] : CharClass::kOther;
}

std::string_view next_word(std::string_view text) {
  if (text.empty()) return text;
  if (const std::size_t length = contraction_length(text); length > 0) {
    return text.substr(0, length);
  }
  const std::size_t begin = text[0] == ' ' ? 1 : 0;
  if (begin < text.size()) {
    const ClassifiedChar first = classify_first(text.substr(begin));
    if (first.char_class != CharClass::kSpace) {
      return text.substr(
          0, end_of_run(text, begin + first.num_bytes, first.char_class));
    }
  }
  return text.substr(0, space_length(text));
}

}  // namespace nfold::train
