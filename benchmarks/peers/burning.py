"""``anyecho serve``, with CPU time burnt for each event of a connection: ``burning.py NANOSECONDS serve ...``.

A difference of known size between two servers, for ``compare_aa.py``. With 0 the server is unchanged.
"""

from __future__ import annotations

import sys
from time import perf_counter_ns

from anyecho.__main__ import main
from anyecho.server.events import EventConnection


def burn_in_each_event(nanoseconds: int) -> None:
    dispatch = EventConnection.dispatch

    def burning(self: EventConnection, mask: int) -> None:
        dispatch(self, mask)
        deadline = perf_counter_ns() + nanoseconds
        while perf_counter_ns() < deadline:
            pass

    type.__setattr__(EventConnection, "dispatch", burning)


if __name__ == "__main__":
    cost = int(sys.argv.pop(1))
    if cost:
        burn_in_each_event(cost)
    main()
