"""Long cables between hosts: ``python -m benchmarks.relay INTERFACE SECONDS NAMESPACE=ADDRESS=RATE ...``.

Each packet arrives so many seconds after it was sent, and each host receives no more bytes a second than its rate. Many kernels
come without netem, which would do the same. Hosts are namespaces of the network, each with a TUN interface that is made here and
is gone when this ends; their names are those of benchmarks.links. Needs root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import queue
import socket
import struct
import sys
import threading
import time
from pathlib import Path

READY = "ready"
"""Printed when the interfaces are there."""
MTU = 32_000
"""Bytes of a packet. Large ones, as each takes this process a few microseconds of a core that the ranks compute on."""
_NEW_NETWORK = 0x40000000
_TUN_WITHOUT_HEADER = 0x0001 | 0x1000
_SET_INTERFACE = 0x400454CA
_DESTINATION = slice(16, 20)
"""Of an IPv4 packet."""
_PRIORITY = -10


class Relay:
    """The cables of some hosts."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._arriving: dict[bytes, queue.SimpleQueue[tuple[float, bytes]]] = {}

    def connect(self, descriptor: int, address: str, bytes_per_second: float) -> None:
        """Join a host that is heard and told through `descriptor`."""
        self._arriving[socket.inet_aton(address)] = arriving = queue.SimpleQueue()
        threading.Thread(target=self._deliver, args=(descriptor, arriving, 1 / bytes_per_second), daemon=True).start()
        threading.Thread(target=self._hear, args=(descriptor,), daemon=True).start()

    def _hear(self, descriptor: int) -> None:
        while packet := os.read(descriptor, 1 << 16):
            if arriving := self._arriving.get(packet[_DESTINATION]):
                arriving.put((time.monotonic(), packet))

    def _deliver(self, descriptor: int, arriving: queue.SimpleQueue[tuple[float, bytes]], seconds_per_byte: float) -> None:
        free = 0.0
        while True:
            sent, packet = arriving.get()
            free = max(free, sent + self._delay) + len(packet) * seconds_per_byte
            time.sleep(max(0.0, free - time.monotonic()))
            os.write(descriptor, packet)


def _interface(namespace: str, name: str) -> int:
    """A descriptor of a new TUN interface in a namespace of the network."""
    library = ctypes.CDLL(None, use_errno=True)
    here, there = (os.open(path, os.O_RDONLY) for path in ("/proc/thread-self/ns/net", Path("/run/netns") / namespace))
    try:
        _enter(library, there)
        descriptor = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(descriptor, _SET_INTERFACE, struct.pack("16sH", name.encode(), _TUN_WITHOUT_HEADER))
        return descriptor
    finally:
        _enter(library, here)
        os.close(here)
        os.close(there)


def _enter(library: ctypes.CDLL, network: int) -> None:
    if library.setns(network, _NEW_NETWORK):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def main(interface: str, delay: str, *hosts: str) -> None:
    relay = Relay(float(delay))
    # Ranks that compute must not make a cable longer.
    os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    for host in hosts:
        namespace, address, rate = host.split("=")
        relay.connect(_interface(namespace, interface), address, float(rate))
    print(READY, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
