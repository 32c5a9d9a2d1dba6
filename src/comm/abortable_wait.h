// File: abortable_wait.h
//
// Waits for messages of a c10d backend, which another thread may end.
//
//   AbortableWait waits;
//   waits.wait(work, timeout);            // on the group's thread
//   waits.abort("ranks wait for each other");   // on any
//
// wait() is for one thread at a time.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/Work.hpp>

namespace nfold {

class AbortableWait {
 public:
  // Raises what the backend raises; PeerError, kDiverged, with the text of
  // abort() once that was called.
  void wait(const c10::intrusive_ptr<c10d::Work>& work,
            std::chrono::milliseconds timeout);
  // This wait, and all to come.
  void abort(const std::string& text) noexcept;

 private:
  void check_aborted() const;  // with mutex_ held

  std::mutex mutex_;
  c10::intrusive_ptr<c10d::Work> current_;  // guarded by mutex_
  std::string text_;                        // guarded by mutex_; of abort()
};

}  // namespace nfold
