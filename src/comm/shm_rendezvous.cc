// How the ranks of a group come to map one segment, and agree that they do.
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "comm/shm_transport.h"
#include "comm/store_text.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

constexpr char kNameKey[] = "segment";
constexpr char kVerdictKey[] = "verdict";
constexpr char kFine[] = "fine";
// Before the text of an error, where a name or kFine is expected.
constexpr char kError = '!';

std::string entry_of(c10d::Store& store, const std::string& key,
                     std::chrono::milliseconds timeout) {
  store.wait({key}, timeout);
  return text_at(store, key);
}

std::string rank_key_of(int rank) { return fmt::format("rank/{}", rank); }

std::string error_entry(const PeerNames& names, const std::exception& error) {
  return fmt::format("{}[rank {}] {}", kError, names.global_rank(names.rank),
                     message_of(error));
}

// The first error among the ranks' entries, or kFine.
std::string verdict_of(c10d::Store& store, int num_ranks,
                       std::chrono::milliseconds timeout) {
  for (int rank = 0; rank < num_ranks; ++rank) {
    std::string entry = entry_of(store, rank_key_of(rank), timeout);
    if (entry != kFine) return entry;
  }
  return kFine;
}

}  // namespace

std::shared_ptr<ShmChannel> make_shm_channel(c10d::Store& store,
                                             const PeerNames& names,
                                             std::chrono::milliseconds timeout,
                                             GroupWorker& worker) {
  const auto size = static_cast<int>(names.global_ranks.size());
  const std::size_t num_bytes = ShmChannel::bytes_for(size);
  const bool is_maker = names.rank == 0;
  SharedSegment made;  // keeps the name until all have opened it
  std::shared_ptr<ShmChannel> channel;
  std::string entry = kFine;
  try {
    if (is_maker) {
      remove_stale_segments();
      made = SharedSegment::create(num_bytes);
      set_text(store, kNameKey, made.name());
    }
    const std::string name = entry_of(store, kNameKey, timeout);
    TORCH_CHECK(name.front() != kError, name.substr(1));
    channel = std::make_shared<ShmChannel>(SharedSegment::open(name, num_bytes),
                                           names, timeout);
    // Before anyone may wait for this rank: else one that died in between
    // would be taken for one that is yet to come.
    worker.run_and_wait([&] { channel->open(); });
  } catch (const std::exception& error) {
    entry = error_entry(names, error);
    if (is_maker) set_text(store, kNameKey, entry);
  }
  set_text(store, rank_key_of(names.rank), entry);
  if (is_maker) {
    const std::string verdict = verdict_of(store, size, timeout);
    made.unlink();
    set_text(store, kVerdictKey, verdict);
  }
  const std::string verdict = entry_of(store, kVerdictKey, timeout);
  if (verdict != kFine && channel) {
    worker.run_and_wait([&] { channel->close(); });
  }
  TORCH_CHECK(verdict == kFine, verdict.substr(1));
  return channel;
}

}  // namespace nfold
