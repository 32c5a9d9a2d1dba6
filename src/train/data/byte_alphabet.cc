#include "train/data/byte_alphabet.h"

#include <array>
#include <cstddef>

#include "train/data/pre_tokenizer.h"

namespace nfold::train {
namespace {

constexpr int kNumByteValues = 256;
// 256 + the 68 bytes that do not stand for themselves.
constexpr std::size_t kAlphabetEnd = 324;

constexpr bool stands_for_itself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) ||
         byte >= 0xAE;
}

struct Alphabet {
  std::array<char32_t, kNumByteValues> char_of{};
  std::array<std::int16_t, kAlphabetEnd> byte_of{};
};

constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  for (auto& byte : alphabet.byte_of) byte = -1;
  char32_t next = 256;
  for (int byte = 0; byte < kNumByteValues; ++byte) {
    const char32_t c =
        stands_for_itself(byte) ? static_cast<char32_t>(byte) : next++;
    alphabet.char_of[byte] = c;
    alphabet.byte_of[c] = static_cast<std::int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

char32_t alphabet_char(std::uint8_t byte) { return kAlphabet.char_of[byte]; }

std::string to_alphabet(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (const char byte : bytes) {
    append_utf8(alphabet_char(static_cast<std::uint8_t>(byte)), &text);
  }
  return text;
}

std::optional<std::string> from_alphabet(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  while (!text.empty()) {
    const Utf8Char c = first_char(text);
    if (!c.is_valid || c.code_point >= kAlphabetEnd) return std::nullopt;
    const std::int16_t byte = kAlphabet.byte_of[c.code_point];
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    text.remove_prefix(c.num_bytes);
  }
  return bytes;
}

}  // namespace nfold::train
