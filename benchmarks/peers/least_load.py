"""The least loop that a load in Python can be: ``python least_load.py PORT CONNECTIONS SIZE SECONDS``.

What it does per message is what `closed_load.c` does, in one frame and without an object of its own: it handles no
error, no part of a message and no limit. Its CPU time is a bound for the load engine, which does. It prints what
`closed_load` prints.
"""

from __future__ import annotations

import gc
import select
import socket
import sys
from array import array
from random import Random
from time import perf_counter_ns, process_time_ns

BYTES, MESSAGES, STRIDE, EVENTS = 4 << 20, 1024, 7, 128
WARM_UP = 200_000_000


def main(port: int, connections: int, size: int, seconds: float) -> None:
    count = 1 << (max(min(BYTES // size, MESSAGES), 2).bit_length() - 1)
    messages = [Random(number).randbytes(size) for number in range(count)]
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    epoll = select.epoll()
    stamps = {sock.fileno(): (array("q"), array("q")) for sock in socks}
    methods = {
        sock.fileno(): (sock.recv, sock.send, sent.append, received.append)
        for sock, (sent, received) in zip(socks, stamps.values(), strict=True)
    }
    numbers = {sock.fileno(): each * STRIDE % count for each, sock in enumerate(socks)}
    gc.disable()
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        epoll.register(sock, select.EPOLLIN)
        stamps[sock.fileno()][0].append(perf_counter_ns())
        sock.send(messages[numbers[sock.fileno()]])

    clock, poll, limit, mask = perf_counter_ns, epoll.poll, size + 1, count - 1
    start = clock() + WARM_UP
    end = start + int(seconds * 1e9)
    cpu, busy = 0, connections
    idle: list[int] = []
    while busy:
        events = poll(None, EVENTS)
        if not cpu and clock() >= start:
            cpu = process_time_ns()
        for descriptor, _ in events:
            receive, _, _, add_received = methods[descriptor]
            if receive(limit) != messages[numbers[descriptor]]:
                sys.exit("that is no echo")
            now = clock()
            add_received(now)
            if now < end:
                idle.append(descriptor)
            else:
                busy -= 1
        for descriptor in idle:
            _, send, add_sent, _ = methods[descriptor]
            numbers[descriptor] = number = (numbers[descriptor] + 1) & mask
            add_sent(clock())
            if send(messages[number]) != size:
                sys.exit("a message was not accepted whole")
        idle.clear()

    cpu, took = process_time_ns() - cpu, clock() - start
    pairs = [pair for sent, received in stamps.values() for pair in zip(sent, received, strict=True)]
    latencies = sorted(received - sent for sent, received in pairs if sent >= start)
    done = len(latencies)
    print(done, took / 1e9, cpu / 1e3 / done, latencies[done // 2], latencies[done * 99 // 100])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
