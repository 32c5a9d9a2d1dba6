#include "base/log.h"

#include <fmt/chrono.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <mutex>
#include <optional>
#include <unordered_set>

#include "nfold/errors.h"

namespace nfold {
namespace {

int int_from_environment(const char* name, int fallback) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  return *end == '\0' ? static_cast<int>(value) : fallback;
}

LogRank rank_from_environment() {
  const LogRank rank{int_from_environment("RANK", 0),
                     int_from_environment("WORLD_SIZE", 1)};
  // A contradiction is World's to report; the logger must work before it.
  if (rank.size < 1 || rank.rank < 0 || rank.rank >= rank.size) return {};
  return rank;
}

const char* word_of(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "?";
}

// The process-wide part of the logger. Never destroyed, because other
// threads and destructors of static objects may still log at exit.
class LogState {
 public:
  static LogState& instance() {
    static LogState& state = *new LogState;
    return state;
  }

  std::atomic<LogRank> rank{rank_from_environment()};
  std::atomic<LogLevel> level{LogLevel::kInfo};

  void write(LogLevel level, std::string_view text) {
    const LogRank own = log_rank();
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    fmt::memory_buffer line;
    const auto out = fmt::appender(line);
    fmt::format_to(out, "{:%H:%M:%S} {} ", local, word_of(level));
    if (own.size > 1) fmt::format_to(out, "[rank {}] ", own.rank);
    fmt::format_to(out, "{}\n", text);
    // One call, and standard error has no buffer: lines of several threads
    // or processes do not mix.
    std::fwrite(line.data(), 1, line.size(), stderr);
  }

  bool is_first(std::string_view text) {
    const std::lock_guard lock(mutex_);
    return written_once_.emplace(text).second;
  }

 private:
  LogState() {
    const char* word = std::getenv("NFOLD_LOG");
    if (word == nullptr || *word == '\0') return;
    try {
      level = log_level_of(word);
    } catch (const c10::ValueError& error) {
      // Not write(), which needs this object.
      std::fprintf(stderr, "warning NFOLD_LOG: %s\n",
                   message_of(error).c_str());
    }
  }

  std::mutex mutex_;
  std::unordered_set<std::string> written_once_;  // guarded by mutex_
};

std::optional<LogRank>& thread_rank() {
  thread_local std::optional<LogRank> rank;
  return rank;
}

void check_rank(int rank, int size) {
  TORCH_CHECK_VALUE(size >= 1 && rank >= 0 && rank < size,
                    "log rank: expected 0 <= rank < size, found rank ", rank,
                    " of ", size);
}

}  // namespace

LogRank log_rank() {
  const auto& own = thread_rank();
  return own ? *own : LogState::instance().rank.load();
}

void set_process_log_rank(int rank, int size) {
  check_rank(rank, size);
  LogState::instance().rank = LogRank{rank, size};
}

void set_log_rank(int rank, int size) {
  check_rank(rank, size);
  thread_rank() = LogRank{rank, size};
}

void set_log_level(LogLevel level) { LogState::instance().level = level; }

LogLevel log_level() { return LogState::instance().level; }

LogLevel log_level_of(std::string_view word) {
  if (word == "debug") return LogLevel::kDebug;
  if (word == "info") return LogLevel::kInfo;
  if (word == "warning") return LogLevel::kWarning;
  if (word == "error") return LogLevel::kError;
  TORCH_CHECK_VALUE(false, "expected debug, info, warning or error, found \"",
                    word, "\"");
}

bool is_logged(LogLevel level, bool every_rank) {
  return level >= log_level() && (every_rank || log_rank().rank == 0);
}

void write_log_line(LogLevel level, std::string_view text) {
  LogState::instance().write(level, text);
}

void write_log_line_once(LogLevel level, std::string_view text) {
  LogState& state = LogState::instance();
  if (state.is_first(text)) state.write(level, text);
}

}  // namespace nfold
