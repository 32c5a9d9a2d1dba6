#include "comm/pending.h"

#include <c10/util/Exception.h>

#include <optional>
#include <utility>

namespace nfold {

BlockedCallers::Wait wait_for(const IssuedCall& issued) {
  return {.group = issued.group, .call = &issued.call, .label = &issued.label};
}

void Pending::State::succeed() { finish(nullptr); }

void Pending::State::fail(std::string text) {
  finish(std::make_unique<const std::string>(std::move(text)));
}

void Pending::State::finish(std::unique_ptr<const std::string> error) {
  WhenDone call;
  {
    const std::lock_guard lock(mutex_);
    TORCH_INTERNAL_ASSERT(!is_done_);
    error_ = std::move(error);
    is_done_ = true;
    call = std::exchange(when_done_, nullptr);
  }
  done_.notify_all();
  if (call) call(error_.get());
}

void Pending::State::when_done(WhenDone call) {
  {
    const std::lock_guard lock(mutex_);
    TORCH_INTERNAL_ASSERT(!when_done_, "one function for each state");
    if (!is_done_) {
      when_done_ = std::move(call);
      return;
    }
  }
  call(error_.get());
}

std::shared_ptr<Pending::State> Pending::State::release(Pending pending) {
  TORCH_INTERNAL_ASSERT(!pending.finish_, "only wait() runs it");
  return std::move(pending.state_);
}

bool Pending::State::is_done() const {
  const std::lock_guard lock(mutex_);
  return is_done_;
}

void Pending::State::wait_until_done() const {
  if (is_done()) return;
  std::optional<const BlockedCallers::Scope> scope;
  if (issued_) scope.emplace(issued_->callers.get(), wait_for(*issued_));
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return is_done_; });
}

void Pending::State::wait() const {
  wait_until_done();
  // A new exception for each caller: one exception object must not be
  // rethrown on several threads at a time.
  if (error_) C10_THROW_ERROR(DistBackendError, *error_);
}

Pending::Pending() = default;
Pending::Pending(std::shared_ptr<State> state) : state_(std::move(state)) {}
Pending::Pending(Pending first, std::function<void()> finish)
    : state_(std::move(first.state_)), finish_(std::move(finish)) {
  TORCH_INTERNAL_ASSERT(!first.finish_, "one function for each Pending");
}
Pending::Pending(Pending&&) noexcept = default;

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this != &other) {
    if (state_) state_->wait_until_done();
    state_ = std::move(other.state_);
    finish_ = std::exchange(other.finish_, nullptr);
  }
  return *this;
}

Pending::~Pending() {
  if (state_) state_->wait_until_done();
}

bool Pending::is_done() const { return !state_ || state_->is_done(); }

void Pending::wait() {
  if (state_) state_->wait();
  if (finish_) std::exchange(finish_, nullptr)();
}

}  // namespace nfold
