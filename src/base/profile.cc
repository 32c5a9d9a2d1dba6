#include "base/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/log.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

// About 48 MB a thread; beyond it ranges are counted, not kept.
constexpr std::size_t kMaxEventsPerThread = 2'000'000;

struct Event {
  const char* name;
  std::int64_t begin_ns;
  std::int64_t end_ns;
};

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// What one thread recorded. Kept alive by its thread and by the recorder.
struct Track {
  std::mutex mutex;  // guards what follows
  int id = 0;
  int rank = 0;
  std::string name;
  std::vector<Event> events;
  std::int64_t num_dropped = 0;
};

// All tracks. Never destroyed: threads may end after static objects have.
class Recorder {
 public:
  static Recorder& instance() {
    static Recorder& recorder = *new Recorder;
    return recorder;
  }

  // The calling thread's track, made at its first use.
  Track& own_track() {
    thread_local const std::shared_ptr<Track> track = add_track();
    return *track;
  }

  std::vector<std::shared_ptr<Track>> tracks() {
    const std::lock_guard lock(mutex_);
    return tracks_;
  }

  void restart() {
    const std::lock_guard lock(mutex_);
    // A thread that has ended no longer shares its track.
    std::erase_if(tracks_,
                  [](const auto& track) { return track.use_count() == 1; });
    for (const auto& track : tracks_) {
      const std::lock_guard track_lock(track->mutex);
      track->events.clear();
      track->num_dropped = 0;
    }
    begin_ns_ = now_ns();
  }

  std::int64_t begin_ns() {
    const std::lock_guard lock(mutex_);
    return begin_ns_;
  }

 private:
  std::shared_ptr<Track> add_track() {
    auto track = std::make_shared<Track>();
    const std::lock_guard lock(mutex_);
    track->id = next_id_++;
    track->name = fmt::format("thread {}", track->id);
    tracks_.push_back(track);
    return track;
  }

  std::mutex mutex_;  // guards what follows; taken before a track's
  std::vector<std::shared_ptr<Track>> tracks_;
  int next_id_ = 1;
  std::int64_t begin_ns_ = 0;
};

// A file that reports what went wrong, with its name.
class TraceFile {
 public:
  explicit TraceFile(const std::string& path)
      : path_(path), file_(std::fopen(path.c_str(), "w")) {
    NFOLD_CHECK_IO(file_ != nullptr, "trace ", path_,
                   ": could not open it for writing (", std::strerror(errno),
                   "); does the folder exist?");
  }
  ~TraceFile() {
    if (file_ != nullptr) std::fclose(file_);
  }
  TraceFile(const TraceFile&) = delete;
  TraceFile& operator=(const TraceFile&) = delete;

  void write(std::string_view text) {
    NFOLD_CHECK_IO(
        std::fwrite(text.data(), 1, text.size(), file_) == text.size(),
        "trace ", path_, ": could not write it (", std::strerror(errno), ")");
  }
  void close() {
    NFOLD_CHECK_IO(std::fclose(std::exchange(file_, nullptr)) == 0, "trace ",
                   path_, ": could not write it (", std::strerror(errno), ")");
  }

 private:
  std::string path_;
  std::FILE* file_;
};

std::string quoted(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false,
                                   nlohmann::json::error_handler_t::replace);
}

std::string metadata_line(std::string_view kind, const Track& track,
                          std::string_view name) {
  return fmt::format(
      R"({{"ph":"M","name":"{}","pid":{},"tid":{},"args":{{"name":{}}}}})",
      kind, track.rank, track.id, quoted(name));
}

std::string event_line(const Event& event, const Track& track,
                       std::int64_t begin_ns) {
  // Microseconds with all digits of the clock, so that a range never seems to
  // end after the one around it.
  const std::int64_t begin = event.begin_ns - begin_ns;
  const std::int64_t duration = event.end_ns - event.begin_ns;
  return fmt::format(R"({{"ph":"X","name":{},"pid":{},"tid":{},"ts":{}.{:03},)"
                     R"("dur":{}.{:03}}})",
                     quoted(event.name), track.rank, track.id, begin / 1000,
                     begin % 1000, duration / 1000, duration % 1000);
}

}  // namespace

void ProfileRange::begin(const char* name) {
  name_ = name;
  begin_ns_ = now_ns();
}

void ProfileRange::end() {
  const std::int64_t end_ns = now_ns();
  Track& track = Recorder::instance().own_track();
  const std::lock_guard lock(track.mutex);
  if (track.events.size() >= kMaxEventsPerThread) {
    ++track.num_dropped;
    return;
  }
  track.rank = log_rank().rank;
  track.events.push_back({name_, begin_ns_, end_ns});
}

void start_profile() {
  Recorder::instance().restart();
  ProfileRange::is_on_ = true;
}

void stop_profile() { ProfileRange::is_on_ = false; }

bool is_profiling() { return ProfileRange::is_on_; }

void set_profile_thread_name(std::string_view name) {
  Track& track = Recorder::instance().own_track();
  const std::lock_guard lock(track.mutex);
  track.name = name;
}

std::vector<ProfileTotal> profile_totals() {
  std::map<std::string_view, ProfileTotal> by_name;
  for (const auto& track : Recorder::instance().tracks()) {
    const std::lock_guard lock(track->mutex);
    for (const Event& event : track->events) {
      ProfileTotal& total = by_name[event.name];
      ++total.calls;
      total.total_ms +=
          static_cast<double>(event.end_ns - event.begin_ns) / 1e6;
    }
  }
  std::vector<ProfileTotal> totals;
  for (auto& [name, total] : by_name) {
    total.name = name;
    totals.push_back(std::move(total));
  }
  std::stable_sort(totals.begin(), totals.end(),
                   [](const ProfileTotal& a, const ProfileTotal& b) {
                     return a.total_ms > b.total_ms;
                   });
  return totals;
}

void write_chrome_trace(const std::string& path) {
  TraceFile file(path);
  const std::int64_t begin_ns = Recorder::instance().begin_ns();
  std::int64_t num_dropped = 0;
  const char* separator = "\n";
  const auto write_line = [&](const std::string& line) {
    file.write(separator);
    file.write(line);
    separator = ",\n";
  };
  file.write("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[");
  for (const auto& track : Recorder::instance().tracks()) {
    const std::lock_guard lock(track->mutex);
    num_dropped += track->num_dropped;
    if (track->events.empty()) continue;
    write_line(metadata_line("process_name", *track,
                             fmt::format("rank {}", track->rank)));
    write_line(metadata_line("thread_name", *track, track->name));
    for (const Event& event : track->events) {
      // Begun before start_profile() dropped what there was.
      if (event.begin_ns < begin_ns) continue;
      write_line(event_line(event, *track, begin_ns));
    }
  }
  file.write("\n]}\n");
  file.close();
  if (num_dropped > 0) {
    log_rank_warning(
        "trace {}: {} ranges beyond the first {} of a thread are missing; "
        "profile fewer steps",
        path, num_dropped, kMaxEventsPerThread);
  }
}

}  // namespace nfold
