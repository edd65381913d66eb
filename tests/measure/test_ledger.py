"""What becomes of datagrams, from what was sent and what came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyecho.errors import EchoMismatch
from anyecho.measure.ledger import Ledger, Settled


def sent(*datagrams: bytes) -> Ledger:
    """A ledger with these; the first is late at 0, and each other a second after the one before."""
    ledger = Ledger(Settled())
    for late_at, datagram in enumerate(datagrams):
        ledger.owe(datagram, late_at=late_at)
    return ledger


def test_a_reply_settles_what_is_equal() -> None:
    ledger = sent(b"a", b"", b"b")

    assert [ledger.settle(reply) for reply in (b"a", b"", b"b")] == [True] * 3
    assert (len(ledger), ledger.bytes_owed, ledger.answered, ledger.reordered) == (0, 0, 3, 0)
    assert str(ledger) == "0 of 3 datagrams were lost"


def test_equal_datagrams_are_settled_one_by_one_and_the_rest_are_duplicates() -> None:
    ledger = sent(b"a", b"a")

    assert [ledger.settle(b"a") for _ in range(3)] == [True, True, False]
    assert (ledger.answered, ledger.duplicates) == (2, 1)


def test_who_was_overtaken_is_out_of_order() -> None:
    ledger = sent(b"a", b"b", b"c", b"d")
    for reply in (b"b", b"a", b"d", b"c"):
        ledger.settle(reply)

    assert ledger.reordered == 2


def test_what_is_late_is_lost_and_counted_if_it_comes() -> None:
    ledger = sent(b"a", b"b", b"c")
    ledger.settle(b"a")
    assert ledger.next_late_at == 1
    ledger.give_up(1.5)
    assert ledger.next_late_at == 2
    assert (ledger.lost, len(ledger), ledger.first_missing) == (1, 1, 1)

    assert [ledger.settle(b"b"), ledger.settle(b"b"), ledger.settle(b"c")] == [False, False, True]
    assert (ledger.lost, ledger.late, ledger.duplicates, ledger.reordered) == (1, 1, 1, 0)
    assert str(ledger) == "1 of 3 datagrams were lost, 1 of them only late; 1 came twice"


@pytest.mark.parametrize(
    ("reply", "message", "offset"),
    [
        (b"cat", "byte 2 of datagram 1 is wrong: sent 0x72, got 0x74", 3),
        (b"stray", "a datagram of 5 bytes came that was never sent", 4),
        (b"", "a datagram of 0 bytes came that was never sent", 4),
    ],
)
def test_what_nobody_sent_is_a_mismatch(reply: bytes, message: str, offset: int) -> None:
    with pytest.raises(EchoMismatch) as caught:
        sent(b"a", b"car").settle(reply)

    assert (str(caught.value), caught.value.offset) == (message, offset)


def test_a_duplicate_is_recognised_in_the_next_exchange_and_not_for_ever() -> None:
    settled = Settled()
    for number in range(16_384 + 1):
        ledger = Ledger(settled)
        ledger.owe(b"%d" % number, late_at=0)
        ledger.settle(b"%d" % number)

    ledger = Ledger(settled)
    assert not ledger.settle(b"1")
    assert ledger.duplicates == 1
    with pytest.raises(EchoMismatch):
        ledger.settle(b"0")


@given(
    st.lists(st.binary(max_size=2), max_size=20).flatmap(
        lambda sent: st.tuples(st.just(sent), st.permutations(sent))
    )
)
def test_whatever_the_order_all_that_is_echoed_is_settled(case: tuple[list[bytes], list[bytes]]) -> None:
    ledger = sent(*case[0])

    assert all(ledger.settle(reply) for reply in case[1])
    assert (len(ledger), ledger.bytes_owed) == (0, 0)
    ledger.give_up(1000)
    assert ledger.lost == 0
