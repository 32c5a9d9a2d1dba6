#include "train/launch/error_report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

constexpr char kOwnFault = 'E';
constexpr char kLostPeer = 'P';

// Whether all of the text went into the pipe. The launcher may be gone.
bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(fd, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(count));
  }
  return true;
}

}  // namespace

std::string encode_error_report(const ErrorReport& report) {
  return (report.is_lost_peer ? kLostPeer : kOwnFault) + report.text;
}

std::optional<ErrorReport> decode_error_report(std::string_view bytes) {
  if (bytes.empty()) return std::nullopt;
  return ErrorReport{bytes.front() == kLostPeer, std::string(bytes.substr(1))};
}

void report_error(const std::exception& error) {
  ErrorReport report;
  report.is_lost_peer = dynamic_cast<const c10::DistError*>(&error) != nullptr;
  report.text = message_of(error);
  if (const char* text = std::getenv(kErrorFdVariable)) {
    if (write_all(std::atoi(text), encode_error_report(report))) return;
  }
  fmt::print(stderr, "nfold: error: {}\n", report.text);
}

}  // namespace nfold::train
