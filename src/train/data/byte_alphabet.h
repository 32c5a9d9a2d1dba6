// File: byte_alphabet.h
//
// The characters that stand for the 256 bytes in a tokenizer.json: printable
// Latin-1 for itself, everything else shifted to U+0100 and up, so that a
// token is always visible text (U+0120 and "the" are " the").
//
// Pure functions; callable from any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nfold::train {

// The character of a byte.
char32_t alphabet_char(std::uint8_t byte);

// Bytes -> visible text.
std::string to_alphabet(std::string_view bytes);

// Visible text -> bytes; nothing if a character is not in the alphabet.
std::optional<std::string> from_alphabet(std::string_view text);

}  // namespace nfold::train
