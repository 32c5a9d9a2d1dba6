// File: config_test_text.h
//
// Reads texts in tests of the configuration.
//
//   EXPECT_THAT(error_of(R"({"stage": 4})"), HasSubstr("unknown key"));
#pragma once

#include <c10/util/Exception.h>

#include <string>
#include <string_view>

#include "nfold/config.h"
#include "nfold/errors.h"

namespace nfold {

inline Config read(std::string_view text) {
  return Config::from_json_text(text);
}

inline Config read_zero(std::string_view fields) {
  return read("{\"zero_optimization\": {" + std::string(fields) + "}}");
}

// The text of the error of type `Error`; empty if there is none.
template <typename Error = c10::ValueError>
std::string error_of(std::string_view text) {
  try {
    read(text);
  } catch (const Error& error) {
    return message_of(error);
  }
  return "";
}

inline std::string zero_error(std::string_view fields) {
  return error_of("{\"zero_optimization\": {" + std::string(fields) + "}}");
}

inline std::string missing(std::string_view text) {
  return error_of<c10::NotImplementedError>(text);
}

}  // namespace nfold
