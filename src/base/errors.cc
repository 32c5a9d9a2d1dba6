#include "nfold/errors.h"

#include <string_view>

namespace nfold {

std::string message_of(const std::exception& error) {
  if (const auto* torch_error = dynamic_cast<const c10::Error*>(&error)) {
    return torch_error->what_without_backtrace();
  }
  // An error that passed through another type, such as a std::runtime_error
  // made from what(), still carries the trace in its text.
  constexpr std::string_view kTrace = "\nException raised from ";
  const std::string_view text = error.what();
  return std::string(text.substr(0, text.find(kTrace)));
}

}  // namespace nfold
