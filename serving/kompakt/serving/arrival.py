# SPDX-License-Identifier: Apache-2.0
"""How long a request's bytes lay in the kernel before this process read them.

A starved process is the last to know: while it gets no CPU it reads nothing, and a clock that
starts with the first read starts when the wait is over. A pod at its CPU limit stood still for
75 of each 100 ms, its users waited, and by its own clock 97 % of its answers were fast.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

_LAST_DATA_RECEIVED: Final = struct.Struct("=52xI")
"""`tcpi_last_data_recv` of `struct tcp_info`, milliseconds (linux/tcp.h)."""
_NS_PER_MS: Final = 1_000_000


def waited_ns(transport: asyncio.BaseTransport) -> int:
    """Time since the newest bytes of a connection arrived, as exact as the kernel's tick (some ms).

    Called with the first of them just read, so it never says more than they waited. Zero where
    the kernel does not tell.
    """
    connection = transport.get_extra_info("socket")
    if connection is None:
        return 0
    try:
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
        (milliseconds,) = _LAST_DATA_RECEIVED.unpack(told)
    except (OSError, struct.error):
        return 0
    waited: int = milliseconds * _NS_PER_MS
    return waited
