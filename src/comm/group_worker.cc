#include "comm/group_worker.h"

#include <ATen/Parallel.h>
#include <c10/util/thread_name.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <future>
#include <utility>

#include "base/log.h"

namespace nfold {
namespace {

// A thread that is new to OpenMP would get a team of its own and compete with
// the computation that it is meant to hide behind. One thread sums faster than
// the transport delivers. Called through OpenMP because at::set_num_threads
// changes the whole process.
void use_one_thread() {
  at::internal::lazy_init_num_threads();
#ifdef _OPENMP
  omp_set_num_threads(1);
#endif
}

}  // namespace

GroupWorker::GroupWorker(const std::string& name) {
  const LogRank rank = log_rank();
  thread_ = std::thread([this, name, rank] {
    set_log_rank(rank.rank, rank.size);
    c10::setThreadName("nf:" + name);
    use_one_thread();
    loop();
  });
}

GroupWorker::~GroupWorker() {
  {
    const std::lock_guard lock(mutex_);
    is_closing_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void GroupWorker::run(std::function<void()> job) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  changed_.notify_one();
}

void GroupWorker::run_and_wait(const std::function<void()>& job) {
  std::promise<void> done;
  run([&] {
    job();
    done.set_value();
  });
  done.get_future().wait();
}

void GroupWorker::loop() {
  for (;;) {
    std::function<void()> job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return is_closing_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace nfold
