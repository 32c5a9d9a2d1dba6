// File: nfold/errors.h
//
// The errors nfold raises and what a caller may do about each. docs/errors.md
// is the long form.
//
//   type                      means                          the caller may
//   c10::ValueError           bad argument or configuration  fix it and retry;
//                                                            nothing changed
//   c10::NotImplementedError  not supported                  choose what the
//                                                            text names
//   c10::DistBackendError     a collective failed or timed   tear down, restart
//                             out, a rank died or diverged   from a checkpoint
//   nfold::IoError            a file could not be read or    as above
//                             written
//   c10::Error                raw access to a sharded        use operators or a
//                             parameter, if the text says    gather scope
//                             so; else a broken invariant    report it
//                             of nfold
//
// Every text says who (rank), what (parameter, key or file), what was
// expected, what was found, and what to do.
#pragma once

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <cstdint>
#include <exception>
#include <string>

namespace nfold {

// A file could not be read or written, or does not hold what it should.
class IoError : public c10::Error {
 public:
  using Error::Error;
};

// The text of an exception without the C++ stack trace that c10::Error
// appends; what a command line shows to its user.
std::string message_of(const std::exception& error);

}  // namespace nfold

// Raises nfold::IoError with the given text when the condition is false. Not
// TORCH_CHECK_WITH, which only knows error types of namespace c10.
#define NFOLD_CHECK_IO(condition, ...)                                \
  do {                                                                \
    if (C10_UNLIKELY(!(condition))) {                                 \
      throw ::nfold::IoError(                                         \
          {__func__, __FILE__, static_cast<std::uint32_t>(__LINE__)}, \
          ::c10::str(__VA_ARGS__));                                   \
    }                                                                 \
  } while (false)
