#include "comm/shared_array.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <utility>

#include "comm/gather_table.h"
#include "comm/group_impl.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

constexpr std::int64_t kTextBytes = 1024;

std::size_t page_bytes() {
  return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

std::size_t rounded_up(std::size_t num_bytes, std::size_t unit) {
  return (num_bytes + unit - 1) / unit * unit;
}

// Raises the first rank's error, if one has any, on all of them.
void raise_on_all(Group& group, const std::string& label,
                  const std::string& own_error) {
  const auto errors = gather_texts(group, own_error, kTextBytes);
  for (int rank = 0; rank < group.size(); ++rank) {
    const auto& error = errors[static_cast<std::size_t>(rank)];
    TORCH_CHECK_WITH(OutOfMemoryError, error.empty(), "[rank ",
                     group.global_ranks()[static_cast<std::size_t>(rank)], "] ",
                     label, ": ", error);
  }
}

}  // namespace

struct alignas(64) SharedArray::Counters {
  // How often the rank has called begin_update, and publish.
  ShmChannel::Word updates;
  alignas(64) ShmChannel::Word version;
};

std::shared_ptr<SharedArray> SharedArray::make(Group& group,
                                               std::size_t num_bytes,
                                               std::string label) {
  auto channel = group.impl().shm_channel();
  if (!channel) return nullptr;
  const auto size = static_cast<std::size_t>(group.size());
  const std::size_t header = rounded_up(size * sizeof(Counters), page_bytes());
  SharedSegment made;
  std::string error;
  if (group.rank() == 0) {
    try {
      made = SharedSegment::create(header + num_bytes);
    } catch (const std::exception& problem) {
      error = message_of(problem);
    }
  }
  // The name, or what rank 0 could not do; then what others could not.
  const auto from_maker =
      gather_texts(group, error.empty() ? made.name() : "!" + error, kTextBytes)
          .front();
  SharedSegment segment;
  if (from_maker.front() != '!') {
    try {
      segment = SharedSegment::open(from_maker, header + num_bytes);
    } catch (const std::exception& problem) {
      error = message_of(problem);
    }
  } else {
    error = from_maker.substr(1);
  }
  raise_on_all(group, label, error);
  return std::make_shared<SharedArray>(std::move(channel), std::move(segment),
                                       std::move(label));
}

void SharedArray::check_room(Group& group, std::int64_t num_bytes,
                             const std::string& purpose) {
  if (!group.impl().shm_channel()) return;
  std::string error;
  try {
    if (group.rank() == 0) check_shared_space(num_bytes, purpose);
  } catch (const std::exception& problem) {
    error = message_of(problem);
  }
  raise_on_all(group, "group '" + group.name() + "'", error);
}

SharedArray::SharedArray(std::shared_ptr<ShmChannel> channel,
                         SharedSegment segment, std::string label)
    : channel_(std::move(channel)),
      segment_(std::move(segment)),
      label_(std::move(label)) {}

std::byte* SharedArray::data() const {
  const auto size = static_cast<std::size_t>(channel_->size());
  return segment_.data() + rounded_up(size * sizeof(Counters), page_bytes());
}

SharedArray::Counters& SharedArray::counters(int rank) const {
  return reinterpret_cast<Counters*>(segment_.data())[rank];
}

void SharedArray::begin_update() {
  Counters& own = counters(channel_->rank());
  // The first values come without an update.
  const std::uint32_t update = version_;
  own.updates.store(update);
  ShmChannel::wake(own.updates);
  for (int i = 1; i < channel_->size(); ++i) {
    const int peer = channel_->peer(i);
    await(peer, counters(peer).updates, update, "has not begun its update of");
  }
}

void SharedArray::publish() {
  Counters& own = counters(channel_->rank());
  TORCH_INTERNAL_ASSERT(own.updates.load() == version_, label_,
                        ": publish without begin_update (version ", version_,
                        ")");
  own.version.store(++version_);
  ShmChannel::wake(own.version);
}

void SharedArray::await_versions() const {
  for (int i = 1; i < channel_->size(); ++i) {
    const int peer = channel_->peer(i);
    await(peer, counters(peer).version, version_,
          "has not published its part of");
  }
}

bool SharedArray::is_current() const {
  for (int rank = 0; rank < channel_->size(); ++rank) {
    if (counters(rank).version.load() != version_) return false;
  }
  return true;
}

void SharedArray::await(int rank, ShmChannel::Word& word, std::uint32_t target,
                        const char* missing) const {
  try {
    channel_->await_word(word, target, rank, [&] {
      return fmt::format("{} {} (version {})", missing, label_, target);
    });
  } catch (const PeerError& error) {
    C10_THROW_ERROR(DistBackendError,
                    fmt::format("[rank {}] {}: {}", channel_->global_rank(),
                                label_, error.what()));
  }
}

}  // namespace nfold
