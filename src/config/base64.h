// File: base64.h
//
// Reads base64, in which launchers pass a configuration on a command line.
//
//   decode_base64("e30=");    // "{}"
//
// A pure function.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace nfold {

// Accepts both alphabets, padding or none, and space around the text. Empty if
// the text is not base64.
std::optional<std::string> decode_base64(std::string_view text);

}  // namespace nfold
