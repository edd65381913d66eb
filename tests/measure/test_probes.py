"""The counts and events of probes, with a clock that the test moves."""

from __future__ import annotations

import pytest

from anyecho.measure.ping_figures import PingFigures, figures_of
from anyecho.measure.probes import Event, Failed, Lost, Probe, Probes, Reply, Wrong

TIMEOUT = 1000


class Scene:
    def __init__(self, size: int = 8) -> None:
        self.now = 1
        self.events: list[Event] = []
        self.probes = Probes(size, TIMEOUT, self.events.append, clock=lambda: self.now)

    def send(self, at: int = 1) -> Probe:
        self.now = at
        probe = self.probes.begin()
        self.probes.sent(probe)
        return probe

    def reply(self, probe: Probe, at: int) -> None:
        self.now = at
        self.probes.reply(probe, at)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def count(scene: Scene) -> dict[str, int]:
    """Return the counts that are not 0; checks their sum."""
    counts = scene.probes.counts
    assert counts.transmitted == counts.received + counts.wrong + counts.lost + counts.outstanding
    assert counts.outstanding == len(scene.probes.outstanding)
    return {name: value for name, value in vars(counts).items() if value}


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000])
def test_a_payload_has_the_asked_size_and_begins_with_the_last_bytes_of_the_number(size: int) -> None:
    probes = [Scene(size).send() for _ in range(2)]
    following = Scene(size)
    payloads = [following.send().payload for _ in range(300)]

    assert [len(each.payload) for each in probes] == [size, size]
    assert [each[:8] for each in payloads] == [n.to_bytes(8, "big")[8 - min(size, 8) :] for n in range(1, 301)]
    assert len({each[8:] for each in payloads}) == 1


def test_an_answer_in_time_is_received_with_its_latency(scene: Scene) -> None:
    first, second = scene.send(at=10), scene.send(at=20)
    scene.reply(first, at=15)
    scene.reply(second, at=50)

    assert count(scene) == {"transmitted": 2, "received": 2}
    assert scene.events == [Reply(number=1, latency=5), Reply(number=2, latency=30)]
    assert list(scene.probes.latencies) == [5, 30]
    assert scene.probes.ewma == 5 + (30 - 5) / 8
    assert scene.probes.duration == 40


def test_a_probe_is_lost_once_more_than_the_timeout_has_passed(scene: Scene) -> None:
    scene.send(at=10)
    scene.send(at=500)
    assert scene.probes.next_expiry == 10 + TIMEOUT
    scene.probes.expire(10 + TIMEOUT)
    assert not scene.events
    scene.probes.expire(11 + TIMEOUT)

    assert scene.events == [Lost(number=1)]
    assert count(scene) == {"transmitted": 2, "lost": 1, "outstanding": 1}


def test_a_late_reply_stays_lost_even_if_it_is_read_before_the_timer_runs(scene: Scene) -> None:
    probe = scene.send(at=10)
    scene.reply(probe, at=11 + TIMEOUT)

    assert scene.events == [Lost(number=1), Reply(number=1, latency=1 + TIMEOUT, late=True)]
    assert count(scene) == {"transmitted": 1, "lost": 1, "late": 1}
    assert not scene.probes.latencies


@pytest.mark.parametrize("late", [False, True])
def test_a_second_reply_is_a_duplicate(late: bool, scene: Scene) -> None:
    probe = scene.send(at=1)
    scene.reply(probe, at=5 + TIMEOUT * late)
    scene.reply(probe, at=9 + TIMEOUT * late)

    assert scene.events[-1] == Reply(number=1, latency=8 + TIMEOUT * late, duplicate=True)
    assert count(scene) == {"transmitted": 1, "duplicates": 1} | (
        {"lost": 1, "late": 1} if late else {"received": 1}
    )


def test_a_reply_after_that_of_a_later_probe_is_reordered(scene: Scene) -> None:
    first, second, third = (scene.send() for _ in range(3))
    for probe in (second, first, third):
        scene.reply(probe, at=2)

    assert [event.number for event in scene.events if isinstance(event, Reply) and event.reordered] == [1]
    assert count(scene) == {"transmitted": 3, "received": 3, "reordered": 1}


def test_replies_of_connections_of_their_own_have_no_order(scene: Scene) -> None:
    first, second = scene.send(), scene.send()
    scene.probes.reply(second, 1, {"connect": 1})
    scene.probes.reply(first, 2, {"connect": 1})

    assert count(scene) == {"transmitted": 2, "received": 2}


def test_failed_probes_are_lost_and_refused_ones_are_errors_too(scene: Scene) -> None:
    answered, broken, refused = (scene.send() for _ in range(3))
    scene.reply(answered, at=2)
    scene.probes.fail([answered, broken], "it broke")
    scene.probes.fail([refused], "refused", error=True)

    assert scene.events[1:] == [Failed(numbers=(2,), reason="it broke"), Failed(numbers=(3,), reason="refused")]
    assert count(scene) == {"transmitted": 3, "received": 1, "lost": 2, "errors": 1}


def test_a_wrong_reply_counts_for_its_probe_or_as_stray(scene: Scene) -> None:
    probe = scene.send()
    scene.probes.wrong(probe, "byte 3 is wrong")
    scene.probes.wrong(None, "never sent")

    assert scene.events == [Wrong(number=1, reason="byte 3 is wrong"), Wrong(number=None, reason="never sent")]
    assert count(scene) == {"transmitted": 1, "wrong": 1, "stray": 1}


def test_a_probe_that_waits_for_its_connection_does_not_expire(scene: Scene) -> None:
    scene.probes.begin()
    scene.probes.expire(10 * TIMEOUT)

    assert scene.probes.next_expiry is None
    assert not scene.events


def test_the_figures_are_those_of_ping() -> None:
    """Ten samples beyond a quantile: 200 samples have a p95, and no p99."""
    latencies = [*range(200, 0, -1)]
    assert figures_of(latencies) == PingFigures(
        minimum=1, average=100, maximum=200, mdev=57, p50=100, p95=190, p99=None
    )
    assert figures_of([1 << 60, (1 << 60) + 2]) == PingFigures(
        minimum=1 << 60, average=(1 << 60) + 1, maximum=(1 << 60) + 2, mdev=1, p50=None, p95=None, p99=None
    )
    assert figures_of([]) is None


@pytest.mark.parametrize(("count", "jitter"), [(200, 90), (199, None)])
def test_jitter_is_p95_minus_p50_where_both_are_resolved(count: int, jitter: int | None) -> None:
    figures = figures_of(range(count))
    assert figures is not None
    assert figures.jitter == jitter
