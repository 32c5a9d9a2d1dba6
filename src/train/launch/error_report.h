// File: error_report.h
//
// How a rank tells its one error: to the launcher, which shows the error of
// the rank that failed first and drops those of the ranks that only lost
// their peer; or to the terminal if no launcher listens.
//
//   catch (const std::exception& error) { report_error(error); return 1; }
//
// The launcher passes a pipe's number in NFOLD_ERROR_FD. Callable from any
// thread; call it once.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <string_view>

namespace nfold::train {

inline constexpr char kErrorFdVariable[] = "NFOLD_ERROR_FD";

struct ErrorReport {
  // The error says that other ranks could not be reached, so that it is
  // probably the consequence of another rank's.
  bool is_lost_peer = false;
  std::string text;
};

// Writes the error to the launcher, else "nfold: error: TEXT" to stderr.
void report_error(const std::exception& error);

// What went through the pipe; absent if that is nothing.
std::optional<ErrorReport> decode_error_report(std::string_view bytes);
std::string encode_error_report(const ErrorReport& report);

}  // namespace nfold::train
