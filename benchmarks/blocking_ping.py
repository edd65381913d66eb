"""Time echoes with a blocking socket, without an event loop: what the loop adds to `anyecho ping`.

``python benchmarks/blocking_ping.py tcp PORT`` (or udp) sends 2000 messages of 56 B to 127.0.0.1, one every 2 ms.
"""

from __future__ import annotations

import socket
import sys
import time

from anyecho.measure.quantiles import quantile

COUNT, INTERVAL, SIZE = 2000, 0.002, 56


def main(carrier: str, port: str) -> None:
    kind = socket.SOCK_DGRAM if carrier == "udp" else socket.SOCK_STREAM
    latencies: list[int] = []
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.connect(("127.0.0.1", int(port)))
        start = time.monotonic()
        for number in range(COUNT):
            time.sleep(max(start + number * INTERVAL - time.monotonic(), 0))
            message = number.to_bytes(8, "big").ljust(SIZE, b"x")
            sent_at = time.perf_counter_ns()
            sock.send(message)
            assert sock.recv(SIZE) == message
            latencies.append(time.perf_counter_ns() - sent_at)

    latencies.sort()
    values = "/".join(f"{quantile(latencies, q) / 1e6:.3f}" for q in (0.5, 0.95, 0.99))
    print(f"rtt p50/p95/p99 = {values} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
