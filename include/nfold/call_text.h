// File: nfold/call_text.h
//
// A call as text, for logs of what was run.
//
//   nfold::call_to_str("load", 1, "a", nfold::named("x", 2));
//                                                     load(1, 'a', x=2)
//
// Strings stand in quotes, other values as operator<< writes them. Pure.
#pragma once

#include <c10/util/StringUtil.h>

#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace nfold {

// An argument that is passed by name.
template <typename T>
struct NamedArgument {
  std::string_view name;
  const T& value;
};

template <typename T>
NamedArgument<T> named(std::string_view name, const T& value) {
  return {name, value};
}

// The text in quotes, with a backslash before quotes and backslashes in it.
std::string in_quotes(std::string_view text);

template <typename T>
std::string argument_text(const T& value) {
  if constexpr (std::is_convertible_v<const T&, std::string_view>) {
    return in_quotes(value);
  } else {
    return c10::str(value);
  }
}

template <typename T>
std::string argument_text(const NamedArgument<T>& argument) {
  return std::string(argument.name) + "=" + argument_text(argument.value);
}

template <typename... Args>
std::string call_to_str(std::string_view function, const Args&... args) {
  const std::vector<std::string> texts{argument_text(args)...};
  std::string call = std::string(function) + "(";
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (i > 0) call += ", ";
    call += texts[i];
  }
  return call + ")";
}

}  // namespace nfold
