// File: bounded_call.h
//
// Waits for an answer that may never come: a store whose host has vanished
// from the network answers no request, and its client knows no time-out.
//
//   auto text = answer_within(2s, [store] { return read(*store); });
//   if (!text) ...  // no answer in time
//
// The call runs on a thread of its own, which is left alone when the time is
// up: whatever the call uses must be captured by value. Not for what answers
// surely, as each use starts a thread.
#pragma once

#include <chrono>
#include <functional>
#include <future>
#include <optional>
#include <string>
#include <thread>
#include <utility>

namespace nfold {

// What `call` returned, or nothing if it did not within `limit`. Raises what
// it raised.
inline std::optional<std::string> answer_within(
    std::chrono::milliseconds limit, std::function<std::string()> call) {
  std::packaged_task<std::string()> task(std::move(call));
  auto answer = task.get_future();
  std::thread(std::move(task)).detach();
  if (answer.wait_for(limit) != std::future_status::ready) return std::nullopt;
  return answer.get();
}

}  // namespace nfold
