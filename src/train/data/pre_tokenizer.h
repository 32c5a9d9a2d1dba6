// File: pre_tokenizer.h
//
// Cuts text into the words that byte-level BPE works on, exactly as this
// regular expression (GPT-2's) would match it from left to right:
//
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//
//   std::string_view rest = text;
//   while (!rest.empty()) {
//     std::string_view word = next_word(rest);
//     rest.remove_prefix(word.size());
//   }
//
// Written as a scanner, since text of several GB goes through it; PCRE2 says
// what the Unicode classes are. A byte that is not part of well-formed UTF-8
// counts as neither letter, number nor space, so any bytes can be cut.
//
// Stateless; callable from any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nfold::train {

// The first word of the text. Never empty unless the text is.
std::string_view next_word(std::string_view text);

enum class CharClass : std::uint8_t { kOther, kLetter, kNumber, kSpace };

// A well-formed character has num_bytes 1 to 4 and is_valid; anything else is
// one byte that is not.
struct Utf8Char {
  char32_t code_point = 0;
  std::uint8_t num_bytes = 0;
  bool is_valid = false;
};

// The character at the start of the text, which must not be empty.
Utf8Char first_char(std::string_view text);

CharClass class_of(char32_t code_point);

// Appends the code point as UTF-8.
void append_utf8(char32_t code_point, std::string* text);

}  // namespace nfold::train
