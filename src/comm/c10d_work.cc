#include "comm/c10d_work.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/ivalue.h>
#include <c10/util/Exception.h>

#include <exception>
#include <utility>

#include "base/log.h"
#include "comm/pending.h"
#include "nfold/errors.h"

namespace nfold {

GroupWork::GroupWork(int rank, c10d::OpType type, const char* title,
                     std::vector<at::Tensor> outputs)
    : Work(rank, type, title, outputs),
      title_(title),
      outputs_(std::move(outputs)),
      future_(c10::make_intrusive<c10::ivalue::Future>(
          c10::ListType::create(c10::TensorType::get()))) {}

bool GroupWork::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const auto is_completed = [this] { return completed_; };
  if (timeout.count() <= 0) {
    cv_.wait(lock, is_completed);
  } else if (!cv_.wait_for(lock, timeout, is_completed)) {
    C10_THROW_ERROR(
        DistBackendError,
        c10::str(title_, " was not done after ", timeout.count(),
                 " ms, the time-out given to wait(); it is still under way"));
  }
  // A new exception for each caller, as in Pending.
  if (!error_.empty()) C10_THROW_ERROR(DistBackendError, error_);
  return true;
}

std::vector<at::Tensor> GroupWork::result() {
  TORCH_CHECK(isCompleted(), title_, " is under way; wait for it first");
  return outputs_;
}

c10::intrusive_ptr<c10::ivalue::Future> GroupWork::getFuture() {
  return future_;
}

void GroupWork::complete(const std::string* error,
                         const std::function<void()>& finish) noexcept {
  std::exception_ptr failure;
  std::string text;
  try {
    if (error != nullptr) C10_THROW_ERROR(DistBackendError, *error);
    // Results are written as a collective in place writes them: unseen by
    // autograd, whatever the tensors require.
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (finish) finish();
  } catch (const std::exception& raised) {
    failure = std::current_exception();
    text = message_of(raised);
  }
  // The future first, so that who has waited for the work finds it done.
  try {
    if (failure) {
      future_->setError(failure);
    } else {
      future_->markCompleted(c10::IValue(outputs_));
    }
  } catch (const std::exception& raised) {
    // Of a callback, which has nobody else to tell: this is the group's thread.
    log_error("{}: a callback of its future raised: {}", title_,
              message_of(raised));
  }
  {
    // As Work::finish, whose locks the thread sanitizer does not see.
    const std::lock_guard lock(mutex_);
    completed_ = true;
    exception_ = failure;
    error_ = std::move(text);
    const auto end_profile = std::exchange(recordFunctionEndCallback_, nullptr);
    if (end_profile) end_profile();
  }
  cv_.notify_all();
}

void follow(c10::intrusive_ptr<GroupWork> work, Pending pending,
            std::function<void()> finish) {
  const auto state = Pending::State::release(std::move(pending));
  if (!state) {
    work->complete(nullptr, finish);
    return;
  }
  state->when_done([work = std::move(work),
                    finish = std::move(finish)](const std::string* error) {
    work->complete(error, finish);
  });
}

}  // namespace nfold
