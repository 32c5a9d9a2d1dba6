// File: c10d_work.h
//
// A collective under way as torch sees it: a c10d::Work with a future, which
// are done once the collective is and its results are where they belong.
//
//   auto work = c10::make_intrusive<GroupWork>(rank, OpType::ALLREDUCE,
//                                              "nfold:allreduce", outputs);
//   follow(work, all_reduce(group, flat), [=] { tensor.copy_(flat); });
//
// Functions are callable from any thread.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <functional>
#include <string>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "nfold/collectives.h"

namespace nfold {

class GroupWork : public c10d::Work {
 public:
  // `title` is shown by torch's profiler.
  GroupWork(int rank, c10d::OpType type, const char* title,
            std::vector<at::Tensor> outputs);

  // Raises c10::DistBackendError with the collective's text, or when the
  // time-out, if it is above zero, passes before.
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  // Raises c10::Error before it is completed.
  std::vector<at::Tensor> result() override;
  // Its value is result().
  c10::intrusive_ptr<c10::ivalue::Future> getFuture() override;

  // Once, when the collective has ended: runs `finish` unless there is an
  // error, then what is chained to the future, then wakes those that wait.
  void complete(const std::string* error,
                const std::function<void()>& finish) noexcept;

 private:
  const char* const title_;
  const std::vector<at::Tensor> outputs_;
  const c10::intrusive_ptr<c10::ivalue::Future> future_;
  std::string error_;  // guarded by mutex_; empty unless it failed
};

// Completes the work when the collective is done, on the thread that finishes
// it: the group's. `finish` may be empty.
void follow(c10::intrusive_ptr<GroupWork> work, Pending pending,
            std::function<void()> finish);

}  // namespace nfold
