// File: group_worker.h
//
// One thread that runs jobs one at a time in the order in which they were
// given: what makes a group's collectives asynchronous yet ordered.
//
//   GroupWorker worker("data_parallel");
//   worker.run([&] { exchange(); });
//
// run() is callable from any thread. The destructor runs what is left, then
// joins the thread.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace nfold {

class GroupWorker {
 public:
  // `name` is the thread's, for debuggers and traces.
  explicit GroupWorker(const std::string& name);
  ~GroupWorker();
  GroupWorker(const GroupWorker&) = delete;
  GroupWorker& operator=(const GroupWorker&) = delete;

  // `job` must not throw.
  void run(std::function<void()> job);
  // Not from a job.
  void run_and_wait(const std::function<void()>& job);

 private:
  void loop();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;  // guarded by mutex_
  bool is_closing_ = false;                 // guarded by mutex_
  std::thread thread_;
};

}  // namespace nfold
