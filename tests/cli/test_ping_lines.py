"""The exact lines and objects of ``anyecho ping``, from given events."""

from __future__ import annotations

import json
import re

import pytest

from anyecho.cli.ping_lines import JSONLines, TextLines, progress_line
from anyecho.measure.ping import Ping
from anyecho.measure.ping_options import PingOptions
from anyecho.measure.probes import Event, Probes

MS = 1_000_000
ADDRESS = "tcp://localhost:7"
PEER = "tcp://127.0.0.1:7"


class Script:
    """A ping without a network; the time is that of the test."""

    def __init__(self, options: PingOptions | None = None) -> None:
        self.now = 0
        self.events: list[Event] = []
        self.ping = Ping(ADDRESS, options, report=self.events.append, clock=lambda: self.now)

    @property
    def probes(self) -> Probes:
        return self.ping.probes

    def answer(self, latency: int, *, interval: int = 0, steps: dict[str, int] | None = None) -> None:
        probe = self.probes.begin()
        self.probes.sent(probe)
        self.now += latency
        self.probes.reply(probe, self.now, steps)
        self.now += max(interval - latency, 0)


@pytest.fixture
def script() -> Script:
    return Script()


def everything(script: Script) -> None:
    """Every kind of event, once."""
    probes = script.probes
    probes.connected(PEER, again=False)
    script.answer(30_000)
    script.answer(1_234_567)
    late = probes.begin()
    probes.sent(late)
    script.now += 10_500 * MS
    probes.reply(late, script.now)
    probes.reply(late, script.now)
    probes.wrong(probes.begin(), "byte 3 is wrong: sent 0x61, got 0x62")
    probes.wrong(None, "2 bytes came that were never sent")
    probes.fail([], "the server closed the connection")
    probes.connected(PEER, again=True)
    probes.fail([probes.begin(), probes.begin()], "the connection broke (Connection reset by peer)")
    probes.fail([probes.begin()], "cannot connect: Connection refused", error=True)
    first, second = probes.begin(), probes.begin()
    for probe in (first, second):
        probes.sent(probe)
    script.now += 12 * MS
    for probe in (second, first):
        probes.reply(probe, script.now)
    script.probes.begin()


def text(script: Script, lines: TextLines) -> list[str]:
    return [*(line for event in script.events for line in lines.event(event)), *lines.summary()]


def test_every_event_has_its_line(script: Script) -> None:
    everything(script)

    assert text(script, TextLines(script.ping)) == [
        "PING tcp://localhost:7 (tcp://127.0.0.1:7) 56 bytes of data.",
        "56 bytes from tcp://127.0.0.1:7: seq=1 time=0.030 ms",
        "56 bytes from tcp://127.0.0.1:7: seq=2 time=1.23 ms",
        "no answer from tcp://127.0.0.1:7: seq=3",
        "56 bytes from tcp://127.0.0.1:7: seq=3 time=10500 ms (late)",
        "56 bytes from tcp://127.0.0.1:7: seq=3 time=10500 ms (DUP!)",
        "wrong answer from tcp://127.0.0.1:7: seq=4 byte 3 is wrong: sent 0x61, got 0x62",
        "wrong answer from tcp://127.0.0.1:7: 2 bytes came that were never sent",
        "the server closed the connection",
        "reconnected to tcp://127.0.0.1:7",
        "the connection broke (Connection reset by peer): lost seq=5-6",
        "cannot connect: Connection refused: lost seq=7",
        "56 bytes from tcp://127.0.0.1:7: seq=9 time=12.0 ms",
        "56 bytes from tcp://127.0.0.1:7: seq=8 time=12.0 ms (out of order)",
        "",
        "--- tcp://localhost:7 ping statistics ---",
        "10 packets transmitted, 4 received, +1 duplicates, +1 corrupted, +1 errors, +1 late, +1 out of order, "
        "+1 stray, +1 reconnects, 60% packet loss, time 10513ms",
        "rtt min/avg/max/mdev = 0.030/6.316/12.000/5.700 ms",
        "rtt p50/p95/p99 = -/-/- ms",
        "jitter (p95 - p50) = - ms",
    ]


def test_every_probe_is_an_object_and_the_summary_is_the_last(script: Script) -> None:
    everything(script)
    lines = JSONLines(script.ping)
    texts = [*(line for event in script.events for line in lines.event(event)), *lines.summary()]
    objects = [json.loads(line) for line in texts]

    assert [(each["event"], each.get("seq")) for each in objects] == [
        *(("reply", 1), ("reply", 2), ("lost", 3), ("late", 3), ("duplicate", 3), ("wrong", 4), ("wrong", None)),
        *(("lost", 5), ("lost", 6), ("lost", 7), ("reply", 9), ("reply", 8), ("summary", None)),
    ]
    assert [each["reordered"] for each in objects if each["event"] == "reply"] == [False, False, False, True]
    assert objects[0] == {"event": "reply", "seq": 1, "time": objects[0]["time"], "rtt": 3e-5, "reordered": False}
    assert objects[-1] == {
        "event": "summary",
        "address": ADDRESS,
        "size": 56,
        "transmitted": 10,
        "received": 4,
        "wrong": 1,
        "lost": 4,
        "outstanding": 1,
        "errors": 1,
        "late": 1,
        "duplicates": 1,
        "reordered": 1,
        "stray": 1,
        "reconnects": 1,
        "loss": 0.6,
        "seconds": pytest.approx(10.513264567),
        "rtt": {
            "min": 3e-5,
            "avg": pytest.approx(6.316141e-3),
            "max": 0.012,
            "mdev": pytest.approx(5.700e-3, rel=1e-3),
            "p50": None,
            "p95": None,
            "p99": None,
            "jitter": None,
        },
    }


def test_quantiles_and_jitter_are_shown_where_enough_samples_lie_beyond(script: Script) -> None:
    for n in range(200):
        script.answer((n + 1) * 1000)
    *_, quantiles, jitter = text(script, TextLines(script.ping))

    assert (quantiles, jitter) == ("rtt p50/p95/p99 = 0.100/0.190/- ms", "jitter (p95 - p50) = 0.090 ms")


def test_the_steps_of_a_connection_are_in_its_line_and_in_the_summary(script: Script) -> None:
    steps = {"dns": 20_000, "connect": 500_000, "tls": 12_300_000, "echo": 200_000}
    script.answer(13_020_000, steps=steps)
    lines = text(script, TextLines(script.ping))

    assert lines[1] == (
        "56 bytes from tcp://localhost:7: seq=1 time=13.0 ms (dns 0.020, connect 0.500, tls 12.3, echo 0.200)"
    )
    assert lines[5:10] == [
        "dns min/avg/max/mdev = 0.020/0.020/0.020/0.000 ms",
        "connect min/avg/max/mdev = 0.500/0.500/0.500/0.000 ms",
        "tls min/avg/max/mdev = 12.300/12.300/12.300/0.000 ms",
        "echo min/avg/max/mdev = 0.200/0.200/0.200/0.000 ms",
        "rtt min/avg/max/mdev = 13.020/13.020/13.020/0.000 ms",
    ]


def test_without_replies_there_is_no_rtt(script: Script) -> None:
    script.probes.fail([script.probes.begin()], "it broke")

    assert (
        text(script, TextLines(script.ping))[-1] == "1 packets transmitted, 0 received, 100% packet loss, time 0ms"
    )
    assert json.loads(next(JSONLines(script.ping).summary()))["rtt"] is None


def test_without_probes_the_summary_is_complete(script: Script) -> None:
    assert text(script, TextLines(script.ping)) == [
        "PING tcp://localhost:7 56 bytes of data.",
        "",
        "--- tcp://localhost:7 ping statistics ---",
        "0 packets transmitted, 0 received, 0% packet loss, time 0ms",
    ]


def test_a_quiet_ping_prints_the_first_line_and_the_summary_only(script: Script) -> None:
    everything(script)
    lines = text(script, TextLines(script.ping, quiet=True))

    assert lines[0].startswith("PING ")
    assert lines[1] == ""


def test_timestamps_are_unix_time_before_each_line_of_an_event(script: Script) -> None:
    script.answer(1)
    lines = text(script, TextLines(script.ping, timestamps=True))

    assert [bool(re.match(r"\[\d{10,}\.\d{6}\] 56 bytes", line)) for line in lines[:3]] == [False, True, False]


@pytest.mark.parametrize(
    ("latencies", "line"),
    [
        ([], "0/1 packets, 100% loss"),
        ([MS], "1/2 packets, 50% loss, min/avg/ewma/max = 1.000/1.000/1.000/1.000 ms"),
        ([MS, 9 * MS], "2/3 packets, 33% loss, min/avg/ewma/max = 1.000/5.000/2.000/9.000 ms"),
    ],
)
def test_the_progress_line_is_that_of_ping(latencies: list[int], line: str, script: Script) -> None:
    for latency in latencies:
        script.answer(latency)
    script.probes.begin()

    assert progress_line(script.ping) == line
