// File: log.h
//
// One line of text to standard error, filtered by level and by rank.
//
//   nfold::log_info("{} parameters in {} buckets", numel, num_buckets);
//   nfold::log_rank_warning("shard of {} is empty", name);
//   nfold::log_once(nfold::LogLevel::kWarning, "key {} is ignored", key);
//
// With N ranks, what every rank would say is written by rank 0 only:
//   log_debug, log_error, log_rank_warning   every rank
//   log_info, log_warning                    rank 0
// A line of a job with more than one rank starts with "[rank k]". NFOLD_LOG =
// debug | info | warning | error sets the least level written; info if unset.
//
// Callable from any thread. The rank is that of the process, unless the
// thread has its own (ranks as threads).
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace nfold {

enum class LogLevel : std::uint8_t { kDebug, kInfo, kWarning, kError };

struct LogRank {
  int rank = 0;
  int size = 1;
};

// The rank that the calling thread's lines carry. Before any call below: that
// of the variables RANK and WORLD_SIZE, else 0 of 1.
LogRank log_rank();

// Sets the rank of every thread that has none of its own.
void set_process_log_rank(int rank, int size);

// Sets the rank of the calling thread only. A thread it starts does not
// inherit the rank; pass log_rank() on.
void set_log_rank(int rank, int size);

// The least level that is written. Overrides NFOLD_LOG.
void set_log_level(LogLevel level);
LogLevel log_level();

// The level called debug, info, warning or error. Raises c10::ValueError for
// another word.
LogLevel log_level_of(std::string_view word);

// Whether a line of this level is written at all; `every_rank` as above. For
// callers that would have to compute what they log.
bool is_logged(LogLevel level, bool every_rank);

// Writes the text, unfiltered. Used by the functions below.
void write_log_line(LogLevel level, std::string_view text);

// As write_log_line, unless this process wrote the same text before.
void write_log_line_once(LogLevel level, std::string_view text);

template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  if (!is_logged(LogLevel::kDebug, /*every_rank=*/true)) return;
  write_log_line(LogLevel::kDebug,
                 fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  if (!is_logged(LogLevel::kInfo, /*every_rank=*/false)) return;
  write_log_line(LogLevel::kInfo,
                 fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  if (!is_logged(LogLevel::kWarning, /*every_rank=*/false)) return;
  write_log_line(LogLevel::kWarning,
                 fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
void log_rank_warning(fmt::format_string<Args...> format, Args&&... args) {
  if (!is_logged(LogLevel::kWarning, /*every_rank=*/true)) return;
  write_log_line(LogLevel::kWarning,
                 fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  if (!is_logged(LogLevel::kError, /*every_rank=*/true)) return;
  write_log_line(LogLevel::kError,
                 fmt::format(format, std::forward<Args>(args)...));
}

// Writes each distinct text once in the life of the process, on rank 0
// (kError: on every rank).
template <typename... Args>
void log_once(LogLevel level, fmt::format_string<Args...> format,
              Args&&... args) {
  if (!is_logged(level, level == LogLevel::kError)) return;
  write_log_line_once(level, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nfold
