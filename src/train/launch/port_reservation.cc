#include "train/launch/port_reservation.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

struct BoundSocket {
  int socket = -1;
  int number = 0;
  int error = 0;
};

BoundSocket bind_socket(int family, const sockaddr* address,
                        socklen_t address_bytes) {
  BoundSocket bound;
  bound.socket = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  const int off = 0;
  sockaddr_storage actual{};
  socklen_t actual_bytes = sizeof(actual);
  const bool is_bound =
      bound.socket >= 0 &&
      ::setsockopt(bound.socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ==
          0 &&
      // One socket for both versions of IP, as the store's.
      (family != AF_INET6 ||
       ::setsockopt(bound.socket, IPPROTO_IPV6, IPV6_V6ONLY, &off,
                    sizeof(off)) == 0) &&
      ::bind(bound.socket, address, address_bytes) == 0 &&
      ::getsockname(bound.socket, reinterpret_cast<sockaddr*>(&actual),
                    &actual_bytes) == 0;
  if (!is_bound) {
    bound.error = errno;
    if (bound.socket >= 0) ::close(bound.socket);
    bound.socket = -1;
    return bound;
  }
  bound.number =
      ntohs(family == AF_INET6
                ? reinterpret_cast<const sockaddr_in6*>(&actual)->sin6_port
                : reinterpret_cast<const sockaddr_in*>(&actual)->sin_port);
  return bound;
}

BoundSocket bind_port(int number) {
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  six.sin6_addr = in6addr_any;
  six.sin6_port = htons(static_cast<std::uint16_t>(number));
  const BoundSocket bound = bind_socket(
      AF_INET6, reinterpret_cast<const sockaddr*>(&six), sizeof(six));
  // In use is an answer; anything else may only mean that IPv6 is off.
  if (bound.socket >= 0 || bound.error == EADDRINUSE) return bound;
  sockaddr_in four{};
  four.sin_family = AF_INET;
  four.sin_addr.s_addr = htonl(INADDR_ANY);
  four.sin_port = htons(static_cast<std::uint16_t>(number));
  return bind_socket(AF_INET, reinterpret_cast<const sockaddr*>(&four),
                     sizeof(four));
}

}  // namespace

PortReservation PortReservation::any() {
  const BoundSocket bound = bind_port(0);
  if (bound.socket < 0) {
    C10_THROW_ERROR(DistNetworkError,
                    c10::str("no free port for the ranks to meet at: ",
                             std::strerror(bound.error)));
  }
  return {bound.socket, bound.number};
}

PortReservation PortReservation::exactly(int number) {
  TORCH_CHECK_VALUE(number >= 1 && number <= 65535, "port ", number,
                    " must be in 1 to 65535");
  const BoundSocket bound = bind_port(number);
  TORCH_CHECK_VALUE(bound.socket >= 0, "port ", number,
                    " cannot be used: ", std::strerror(bound.error),
                    ". Choose another, or none to get a free one.");
  return {bound.socket, bound.number};
}

PortReservation::PortReservation(PortReservation&& other) noexcept
    : socket_(std::exchange(other.socket_, -1)), number_(other.number_) {}

PortReservation::~PortReservation() {
  if (socket_ >= 0) ::close(socket_);
}

}  // namespace nfold::train
