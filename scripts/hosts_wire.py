"""The wire between test hosts: frames arrive a given time after they left.

    Wire(["port0", "port1"], delay_seconds=1e-4).run(until=owner_fd)

For kernels without netem, whose queueing disciplines know rates but no delay.
Frames are taken from one interface and put on another through packet sockets,
whole as the sender's TCP made them (up to 64 KiB, not yet segmented), so that
a gigabit is some thousand frames a second. Where a frame goes follows from
its destination's last byte (mac_of), everything else goes to all others. Rates
are for the interfaces' own queueing discipline, which sees these frames too.
"""

import collections
import ctypes
import os
import select
import socket
import time

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
# What a full queue may hold; a frame beyond it is lost, as in a switch.
BUFFER_BYTES = 32 << 20
# The header that says what the kernel has left undone: checksum, segments.
VNET_HEADER_BYTES = 10
MAX_FRAME_BYTES = (64 << 10) + 256
# Read from one interface before the others get their turn.
MAX_BURST = 64
PR_SET_TIMERSLACK = 29


def mac_of(number):
    return f"02:00:00:00:00:{number:02x}"


def _open(interface):
    wire_end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire_end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    wire_end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    wire_end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER_BYTES)
    wire_end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
    wire_end.setblocking(False)
    # The protocol comes with the interface, else frames of all would arrive.
    wire_end.bind((interface, ETH_P_ALL))
    return wire_end


def _hurry():
    """Wakes up in time although the hosts use every processor."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:  # a control group without real-time budget
        os.setpriority(os.PRIO_PROCESS, 0, -20)


class Wire:
    """Interface number i leads to the host with mac_of(i)."""

    def __init__(self, interfaces, delay_seconds):
        self._ends = [_open(interface) for interface in interfaces]
        self._delay = delay_seconds
        self._under_way = collections.deque()  # (due, end, frame), in order

    def run(self, until):
        """Carries frames until the file descriptor `until` can be read."""
        _hurry()
        while True:
            wait = None
            if self._under_way:
                wait = max(0.0, self._under_way[0][0] - time.monotonic())
            ready, _, _ = select.select([until, *self._ends], [], [], wait)
            if until in ready:
                return
            for end in ready:
                self._take(end)
            self._deliver()

    def _take(self, end):
        for _ in range(MAX_BURST):
            try:
                frame = end.recv(MAX_FRAME_BYTES)
            except BlockingIOError:
                return
            except OSError:  # the host is going, or its interface is down
                return
            due = time.monotonic() + self._delay
            for target in self._targets(end, frame):
                self._under_way.append((due, target, frame))

    def _targets(self, source, frame):
        destination = frame[VNET_HEADER_BYTES:VNET_HEADER_BYTES + 6]
        number = destination[5]
        if destination[0] == 2 and number < len(self._ends):
            return [self._ends[number]]
        return [end for end in self._ends if end is not source]

    def _deliver(self):
        now = time.monotonic()
        while self._under_way and self._under_way[0][0] <= now:
            _, end, frame = self._under_way.popleft()
            try:
                end.send(frame)
            except OSError:
                pass  # a full queue, or the host's interface is down: lost
