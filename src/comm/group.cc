#include "nfold/group.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <thread>

#include "comm/bounded_call.h"
#include "comm/group_impl.h"
#include "comm/peer_errors.h"
#include "nfold/errors.h"

namespace nfold {
namespace {

constexpr char kFailureKey[] = "first_failure";
// How long a rank that lost a connection looks for the reason, which the rank
// that failed first may still be writing.
constexpr std::chrono::milliseconds kAftermathLimit{500};
constexpr std::chrono::milliseconds kAftermathPoll{10};
// The store may be on a host that has vanished.
constexpr std::chrono::milliseconds kStoreLimit{2000};
void check_spec(const GroupSpec& spec, bool has_transport) {
  const auto size = static_cast<int>(spec.global_ranks.size());
  TORCH_CHECK_VALUE(spec.rank >= 0 && spec.rank < size, "group '", spec.name,
                    "': position ", spec.rank, " in a group of ", size,
                    " ranks; expected 0 <= position < size");
  TORCH_CHECK_VALUE(has_transport || size == 1, "group '", spec.name, "' of ",
                    size, " ranks needs a transport");
  TORCH_CHECK_VALUE(spec.timeout.count() > 0, "group '", spec.name,
                    "': expected a time-out above zero but found ",
                    spec.timeout.count(), " ms");
  TORCH_CHECK_VALUE(spec.host_names.empty() ||
                        spec.host_names.size() == spec.global_ranks.size(),
                    "group '", spec.name, "': ", spec.host_names.size(),
                    " host names for ", size,
                    " ranks; expected one each, or none");
}

// Leaves the text in the store, or returns that which the first rank to fail
// has left there.
std::string first_failure(c10d::Store& store, const std::string& own_text) {
  const std::vector<std::uint8_t> own(own_text.begin(), own_text.end());
  const auto stored = store.compareSet(kFailureKey, {}, own);
  return {stored.begin(), stored.end()};
}

// What to add to the text of a rank that was not the first to fail.
std::string earlier_failure(c10d::Store& group_store, c10d::Store* job_store,
                            const std::string& own_text, bool is_aftermath) {
  const auto limit = std::chrono::steady_clock::now() + kAftermathLimit;
  const auto is_known = [&] {
    return group_store.check({kFailureKey}) ||
           (job_store != nullptr && job_store->check({kFailureKey}));
  };
  while (is_aftermath && !is_known() &&
         std::chrono::steady_clock::now() < limit) {
    std::this_thread::sleep_for(kAftermathPoll);
  }
  const auto of_group = first_failure(group_store, own_text);
  const auto of_job =
      job_store != nullptr ? first_failure(*job_store, own_text) : own_text;
  const auto is_other = [&](const std::string& text) {
    return !text.empty() && text != own_text;
  };
  if (is_other(of_group)) {
    return "\nThe first rank of the group to fail says: " + of_group;
  }
  // Whoever ran into trouble by itself has nothing to do with it.
  if (is_aftermath && is_other(of_job)) {
    return "\nThe first rank of the job to fail says: " + of_job;
  }
  return "";
}

}  // namespace

const char* name_of(Collective collective) {
  switch (collective) {
    case Collective::kAllGather:
      return "all_gather";
    case Collective::kReduceScatter:
      return "reduce_scatter";
    case Collective::kAllReduce:
      return "all_reduce";
    case Collective::kBroadcast:
      return "broadcast";
    case Collective::kAllToAll:
      return "all_to_all";
    case Collective::kBarrier:
      return "barrier";
  }
  return "unknown collective";
}

Group::Group(std::unique_ptr<GroupImpl> impl) : impl_(std::move(impl)) {}
Group::~Group() = default;

const std::string& Group::name() const { return impl_->spec().name; }
int Group::rank() const { return impl_->rank(); }
int Group::global_rank() const {
  return global_ranks()[static_cast<std::size_t>(rank())];
}
int Group::size() const { return impl_->size(); }
const std::vector<int>& Group::global_ranks() const {
  return impl_->spec().global_ranks;
}
const char* Group::transport() const {
  return impl_->transport() ? impl_->transport()->name() : "none";
}
CommCounts Group::counts() const { return impl_->counts(); }
std::chrono::nanoseconds Group::busy_time() const { return impl_->busy_time(); }

std::unique_ptr<Group> make_group(GroupSpec spec,
                                  std::unique_ptr<GroupTransport> transport,
                                  std::unique_ptr<GroupWorker> worker) {
  check_spec(spec, transport != nullptr);
  return std::make_unique<Group>(std::make_unique<GroupImpl>(
      std::move(spec), std::move(transport), std::move(worker)));
}

GroupImpl::GroupImpl(GroupSpec spec, std::unique_ptr<GroupTransport> transport,
                     std::unique_ptr<GroupWorker> worker)
    : spec_(std::move(spec)),
      transport_(std::move(transport)),
      worker_(std::move(worker)) {
  if (size() > 1 && !worker_) {
    worker_ = std::make_unique<GroupWorker>(spec_.name);
  }
  if (spec_.callers) spec_.callers->add(spec_.number, this);
}

GroupImpl::~GroupImpl() {
  if (worker_) {
    worker_->run([this] { transport_->close(); });
    // Peers may never enter what was issued.
    std::optional<const BlockedCallers::Scope> scope;
    if (last_issued_) {
      scope.emplace(spec_.callers.get(), wait_for(*last_issued_));
    }
    worker_.reset();
  }
  if (spec_.callers) spec_.callers->remove(spec_.number);
}

std::shared_ptr<ShmChannel> GroupImpl::shm_channel() const {
  return transport_ ? transport_->shm_channel() : nullptr;
}

void GroupImpl::set_label(std::string label) {
  const std::lock_guard lock(mutex_);
  label_ = std::move(label);
}

void GroupImpl::set_tag(std::uint64_t tag) {
  const std::lock_guard lock(mutex_);
  tag_ = tag;
}

std::uint64_t GroupImpl::num_entered() const {
  const std::lock_guard lock(mutex_);
  return sequence_;
}

std::string GroupImpl::label() const {
  const std::lock_guard lock(mutex_);
  return label_;
}

void GroupImpl::condemn(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  reason_ = reason;
}

void GroupImpl::abort() { transport_->abort(reason()); }

std::string GroupImpl::reason() const {
  const std::lock_guard lock(mutex_);
  return reason_;
}

Pending GroupImpl::issue(CollectiveCall call, Body body) {
  if (spec_.callers) spec_.callers->note_caller();
  auto job = std::make_shared<Job>();
  job->body = std::move(body);
  // Under the lock until the job is queued: the sequence numbers must be in
  // the order of the queue.
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) C10_THROW_ERROR(DistBackendError, failure_);
  call.sequence = sequence_++;
  call.tag = tag_;
  job->issued = std::make_shared<const IssuedCall>(
      IssuedCall{call, label_, spec_.number, spec_.callers});
  last_issued_ = job->issued;
  job->state = std::make_shared<Pending::State>(job->issued);
  Pending pending(job->state);
  worker_->run([this, job = std::move(job)] { run(*job); });
  return pending;
}

Pending GroupImpl::count_local(Collective kind) {
  ++counters_[static_cast<std::size_t>(kind)].calls;
  return Pending();
}

void GroupImpl::run(Job& job) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) {
      job.body = nullptr;
      job.state->fail(failure_);
      return;
    }
  }
  const auto start = std::chrono::steady_clock::now();
  std::string failure;
  bool is_aftermath = false;
  try {
    const CollectiveCall& call = job.issued->call;
    const std::int64_t bytes = job.body(*transport_, call);
    Counter& counter = counters_[static_cast<std::size_t>(call.kind)];
    ++counter.calls;
    counter.bytes += bytes;
  } catch (const PeerError& error) {
    failure = failure_text(job, error.what());
    is_aftermath = error.kind == PeerError::Kind::kClosed;
  } catch (const std::exception& error) {
    failure = failure_text(job, message_of(error));
  }
  busy_ns_ += (std::chrono::steady_clock::now() - start).count();
  // The body holds the tensors; whoever waits may rely on them being free.
  job.body = nullptr;
  if (failure.empty()) {
    job.state->succeed();
    return;
  }
  // All ranks concerned know this one, so none needs to be quoted.
  if (const std::string why = reason(); !why.empty()) {
    failure = failure_text(job, why);
    exchange_failure(failure, /*is_aftermath=*/false);
  } else {
    failure = exchange_failure(failure, is_aftermath);
  }
  fail(job, std::move(failure));
}

std::string GroupImpl::failure_text(const Job& job,
                                    const std::string& reason) const {
  const std::string& label = job.issued->label;
  return fmt::format("[rank {}] group '{}': {}{} failed: {}",
                     spec_.global_ranks[static_cast<std::size_t>(rank())],
                     spec_.name, describe(job.issued->call),
                     label.empty() ? "" : " (" + label + ")", reason);
}

void GroupImpl::fail(Job& job, std::string text) {
  transport_->close();
  {
    const std::lock_guard lock(mutex_);
    failure_ = text;
  }
  job.state->fail(std::move(text));
}

std::string GroupImpl::exchange_failure(const std::string& text,
                                        bool is_aftermath) {
  if (!spec_.store) return text;
  std::optional<std::string> earlier;
  try {
    earlier = answer_within(
        kStoreLimit,
        [store = spec_.store, job_store = spec_.job_store, text, is_aftermath] {
          return earlier_failure(*store, job_store.get(), text, is_aftermath);
        });
  } catch (const std::exception&) {
    // The store may have died with its rank; the failure itself is known.
  }
  // Then nobody can tell the others what was first, and who is waited for may
  // only wait for a rank that is gone.
  if (!earlier && !spec_.store_host.empty()) {
    return text + "\nThe store of the job, which is where rank 0 is (host " +
           spec_.store_host +
           "), does not answer: that host may be what is gone.";
  }
  return text + earlier.value_or("");
}

CommCounts GroupImpl::counts() const {
  CommCounts counts;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    counts[i] = {counters_[i].calls.load(), counters_[i].bytes.load()};
  }
  return counts;
}

std::chrono::nanoseconds GroupImpl::busy_time() const {
  return std::chrono::nanoseconds(busy_ns_.load());
}

}  // namespace nfold
