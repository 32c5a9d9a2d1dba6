// File: port_reservation.h
//
// A TCP port that nobody else gets while this object lives, and that a
// program which is told its number can still listen at.
//
//   PortReservation port = PortReservation::any();
//   start_server_at(port.number());  // in another process
//
// The socket is bound but does not listen, with SO_REUSEADDR, as c10d's store
// has it: the kernel gives the port to no outgoing connection and to no other
// request for a free port, but lets a server that names it share it. So there
// is no gap between choosing a port and using it.
//
// Movable. Not for use by two threads at once.
#pragma once

namespace nfold::train {

class PortReservation {
 public:
  // A free port. Raises c10::DistNetworkError if there is none.
  static PortReservation any();
  // This port, 1 to 65535. Raises c10::ValueError if something listens there.
  static PortReservation exactly(int number);

  PortReservation(PortReservation&& other) noexcept;
  PortReservation& operator=(PortReservation&&) = delete;
  ~PortReservation();

  int number() const { return number_; }

 private:
  PortReservation(int socket, int number) : socket_(socket), number_(number) {}

  int socket_;
  int number_;
};

}  // namespace nfold::train
