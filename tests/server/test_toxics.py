"""Toxics in toxiproxy's units, and the faults that they are."""

from __future__ import annotations

from typing import Any

import pytest

from anyecho.errors import AnyechoError, UsageError
from anyecho.faults import (
    Bandwidth,
    Corrupt,
    Cut,
    HalfClose,
    Latency,
    LimitData,
    PacketLoss,
    ResetPeer,
    Slicer,
    SlowClose,
    Stall,
    StreamFault,
    Timeout,
)
from anyecho.server.control_body import RequestFailed
from anyecho.server.toxics import TOXICS, make_toxic, update_toxic


@pytest.fixture(autouse=True)
def engine() -> None:
    """No engine makes a toxic."""


def fault(kind: str, **attributes: Any) -> StreamFault | None:
    return make_toxic({"type": kind, "attributes": attributes}).fault


FAULTS: list[tuple[StreamFault | None, StreamFault | None]] = [
    (fault("latency", latency=1500, jitter=20), Latency(latency=1.5, jitter=0.02)),
    (fault("latency"), Latency()),
    (fault("bandwidth", rate=5), Bandwidth(rate=5000.0)),
    (fault("bandwidth", rate=0), Stall()),
    (fault("slow_close", delay=250), SlowClose(delay=0.25)),
    (fault("timeout", timeout=250), Timeout(timeout=0.25)),
    (fault("timeout", timeout=0), Timeout(timeout=None)),
    (fault("timeout", timeout=None), Timeout(timeout=None)),
    (fault("reset_peer", timeout=250), ResetPeer(timeout=0.25)),
    (
        fault("slicer", average_size=64, size_variation=32, delay=500),
        Slicer(average_size=64, size_variation=32, delay=0.0005),
    ),
    (fault("slicer"), Slicer(average_size=1)),
    (fault("limit_data", bytes=100), LimitData(bytes=100)),
    (fault("packet_loss"), PacketLoss(loss_rate=0.1)),
    (fault("packet_loss", loss_rate=1, correlation=0.5), PacketLoss(loss_rate=1.0, correlation=0.5)),
    (fault("noop", unknown=1), None),
    (fault("corrupt", offset=7), Corrupt(offset=7)),
    (fault("corrupt", rate=0.5), Corrupt(rate=0.5)),
    (fault("cut", bytes=0), Cut(bytes=0)),
    (fault("cut", timeout=250), Cut(seconds=0.25)),
    (fault("stall", bytes=5, timeout=250), Stall(bytes=5, seconds=0.25)),
    (fault("stall"), Stall(bytes=0, seconds=None)),
    (fault("half_close", bytes=5), HalfClose(bytes=5)),
]


@pytest.mark.parametrize(("made", "expected"), FAULTS, ids=lambda each: getattr(each, "name", "noop"))
def test_a_toxic_is_a_fault_in_seconds_and_bytes(made: StreamFault | None, expected: StreamFault | None) -> None:
    assert made == expected


def test_every_type_of_toxic_is_compared_with_its_fault() -> None:
    known = {getattr(expected, "name", "noop") for _, expected in FAULTS}

    assert set(TOXICS) == known


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            {"type": "latency"},
            {"attributes": {"latency": 0, "jitter": 0}, "name": "latency_downstream", "stream": "downstream"},
        ),
        (
            {"type": "latency", "stream": "UPSTREAM", "name": "", "attributes": None, "toxicity": None},
            {"attributes": {"latency": 0, "jitter": 0}, "name": "latency_upstream", "stream": "upstream"},
        ),
        (
            {"type": "cut", "name": "x", "toxicity": 0.5, "attributes": {"bytes": 1, "other": "?"}, "other": 1},
            {"attributes": {"bytes": 1, "timeout": 0}, "name": "x", "stream": "downstream", "toxicity": 0.5},
        ),
        (
            {"type": "packet_loss", "toxicity": 1.0},
            {
                "attributes": {"loss_rate": 0.1, "correlation": 0.0},
                "name": "packet_loss_downstream",
                "stream": "downstream",
            },
        ),
    ],
)
def test_a_toxic_is_shown_with_all_attributes_of_its_type(given: dict[str, Any], shown: dict[str, Any]) -> None:
    toxic = make_toxic(given).to_json()

    assert toxic == {"type": given["type"], "toxicity": 1, **shown}
    assert list(toxic) == ["attributes", "name", "type", "stream", "toxicity"]
    assert isinstance(toxic["toxicity"], float) == (toxic["toxicity"] != 1)


@pytest.mark.parametrize(("toxicity", "probability"), [(0, 0.0), (0.25, 0.25), (1, 1.0), (7, 1.0), (-1, 0.0)])
def test_a_toxicity_beyond_a_probability_is_always_or_never(toxicity: float, probability: float) -> None:
    toxic = make_toxic({"type": "latency", "toxicity": toxicity})
    assert toxic.fault is not None
    assert (toxic.fault.toxicity, toxic.to_json()["toxicity"]) == (probability, toxicity)


def test_an_update_changes_the_given_attributes_and_the_toxicity() -> None:
    toxic = make_toxic({"type": "latency", "name": "slow", "attributes": {"latency": 1, "jitter": 2}})

    changed = update_toxic(toxic, {"attributes": {"latency": 1000, "jitter": None}, "toxicity": 0.5, "name": "x"})

    assert (changed.name, changed.fault) == ("slow", Latency(latency=1.0, jitter=0.002, toxicity=0.5))
    assert update_toxic(changed, {}) == changed


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "invalid toxic type"),
        ({"type": "rain"}, "invalid toxic type"),
        ({"type": "rain", "stream": "side"}, "stream was invalid, can be either upstream or downstream"),
        ({"type": 7}, "type must be a string"),
        ({"type": "latency", "name": 7}, "name must be a string"),
        ({"type": "latency", "toxicity": "1"}, "toxicity must be a number, not '1'"),
        ({"type": "latency", "toxicity": 1e300}, "toxicity is out of range"),
        ({"type": "latency", "toxicity": True}, "toxicity must be a number, not True"),
        ({"type": "latency", "attributes": [1]}, "attributes must be an object, not [1]"),
        ({"type": "latency", "attributes": {"latency": 1.5}}, "latency must be a whole number, not 1.5"),
        ({"type": "latency", "attributes": {"latency": "1"}}, "latency must be a whole number, not '1'"),
        ({"type": "latency", "attributes": {"latency": True}}, "latency must be a whole number, not True"),
        ({"type": "latency", "attributes": {"latency": 10**400}}, "latency is out of range"),
        ({"type": "latency", "attributes": {"latency": -5}}, "latency: latency must be 0 or more, not -0.005"),
        ({"type": "packet_loss", "attributes": {"loss_rate": 2}}, "packet_loss: loss_rate must be from 0 to 1"),
        (
            {"type": "slicer", "attributes": {"average_size": 5, "size_variation": 5}},
            "slicer: size_variation must be less than average_size, 5, not 5",
        ),
        ({"type": "cut"}, "cut: give bytes or timeout"),
        ({"type": "corrupt"}, "corrupt: give rate or offset"),
    ],
)
def test_a_bad_toxic_is_one_line(given: dict[str, Any], text: str) -> None:
    with pytest.raises(AnyechoError) as caught:
        make_toxic(given)

    assert str(caught.value).removeprefix("bad request body: ").startswith(text)
    assert isinstance(caught.value, RequestFailed | UsageError)
