#include "comm/abortable_wait.h"

#include "comm/peer_errors.h"

namespace nfold {

void AbortableWait::wait(const c10::intrusive_ptr<c10d::Work>& work,
                         std::chrono::milliseconds timeout) {
  {
    const std::lock_guard lock(mutex_);
    check_aborted();
    current_ = work;
  }
  try {
    // False when it was aborted, also if that came before the wait.
    work->wait(timeout);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    current_.reset();
    throw;
  }
  const std::lock_guard lock(mutex_);
  current_.reset();
  check_aborted();
}

void AbortableWait::abort(const std::string& text) noexcept {
  const std::lock_guard lock(mutex_);
  text_ = text;
  if (!current_) return;
  try {
    current_->abort();
  } catch (...) {
    // A backend that cannot do it: the wait ends by its time-out, and then
    // fails for this reason.
  }
}

void AbortableWait::check_aborted() const {
  if (!text_.empty()) throw PeerError(PeerError::Kind::kDiverged, text_);
}

}  // namespace nfold
