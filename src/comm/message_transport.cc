#include "comm/message_transport.h"

#include "comm/collectives_bodies.h"
#include "comm/scratch.h"

namespace nfold {
namespace {

class MessageTransport : public GroupTransport {
 public:
  explicit MessageTransport(GroupLink link) : link_(std::move(link)) {
    if (!link_.peers.empty()) return;
    const auto size = static_cast<int>(link_.names.global_ranks.size());
    for (int i = 1; i < size; ++i) {
      link_.peers.push_back((link_.names.rank + i) % size);
    }
  }

  const char* name() const override { return "gloo"; }

  std::int64_t all_gather(const CollectiveCall& call,
                          const std::vector<FlatView>& flats) override {
    GroupExchange exchange(link_, call);
    run_all_gather(exchange, flats);
    return exchange.sent_bytes();
  }

  std::int64_t reduce_scatter(const CollectiveCall& call,
                              const std::vector<FlatView>& flats,
                              const std::vector<std::byte*>& outputs) override {
    GroupExchange exchange(link_, call);
    run_reduce_scatter(exchange, scratch_, flats, outputs, call);
    return exchange.sent_bytes();
  }

  std::int64_t all_reduce(const CollectiveCall& call,
                          const FlatView& flat) override {
    GroupExchange exchange(link_, call);
    run_all_reduce(exchange, scratch_, flat, call);
    return exchange.sent_bytes();
  }

  std::int64_t broadcast(const CollectiveCall& call,
                         const FlatView& flat) override {
    GroupExchange exchange(link_, call);
    run_broadcast(exchange, flat, call.source);
    return exchange.sent_bytes();
  }

  std::int64_t all_to_all(const CollectiveCall& call, const FlatView& output,
                          const FlatView& input) override {
    GroupExchange exchange(link_, call);
    run_all_to_all(exchange, output, input);
    return exchange.sent_bytes();
  }

  std::int64_t barrier(const CollectiveCall& call) override {
    GroupExchange exchange(link_, call);
    exchange.begin();
    exchange.finish();
    return 0;
  }

  void abort(const std::string& text) noexcept override {
    link_.waits->abort(text);
  }
  void close() noexcept override { link_.backend.reset(); }

 private:
  GroupLink link_;
  Scratch scratch_;
};

}  // namespace

std::unique_ptr<GroupTransport> make_message_transport(GroupLink link) {
  return std::make_unique<MessageTransport>(std::move(link));
}

}  // namespace nfold
