#include "train/launch/port_reservation.h"

#include <gtest/gtest.h>

#include <set>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

#include "nfold/errors.h"

namespace nfold::train {
namespace {

c10d::TCPStoreOptions server_at(int port) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(port);
  options.isServer = true;
  options.waitWorkers = false;
  return options;
}

TEST(PortReservation, AStoreCanListenAtAReservedPort) {
  const PortReservation port = PortReservation::any();
  c10d::TCPStore store("127.0.0.1", server_at(port.number()));
  store.set("key", std::vector<std::uint8_t>{1});
  EXPECT_EQ(store.get("key"), std::vector<std::uint8_t>{1});
}

TEST(PortReservation, NoTwoReservationsShareAPort) {
  std::vector<PortReservation> ports;
  std::set<int> numbers;
  for (int i = 0; i < 200; ++i) {
    ports.push_back(PortReservation::any());
    numbers.insert(ports.back().number());
  }
  EXPECT_EQ(numbers.size(), 200u);
}

TEST(PortReservation, APortInUseIsRefused) {
  c10d::TCPStore store("127.0.0.1", server_at(0));
  try {
    PortReservation::exactly(store.getPort());
    FAIL() << "a port in use was reserved";
  } catch (const c10::ValueError& error) {
    const std::string text = message_of(error);
    EXPECT_NE(text.find(std::to_string(store.getPort())), std::string::npos);
    EXPECT_NE(text.find("in use"), std::string::npos) << text;
  }
}

TEST(PortReservation, ANumberOutOfRangeIsRefused) {
  EXPECT_THROW(PortReservation::exactly(0), c10::ValueError);
  EXPECT_THROW(PortReservation::exactly(65536), c10::ValueError);
}

TEST(PortReservation, APortIsFreeAgainAfterwards) {
  int number = 0;
  {
    const PortReservation port = PortReservation::any();
    number = port.number();
  }
  EXPECT_EQ(PortReservation::exactly(number).number(), number);
}

}  // namespace
}  // namespace nfold::train
