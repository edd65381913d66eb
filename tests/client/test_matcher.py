"""Replies are matched to datagrams; losses, duplicates and reordering are counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyecho.client.matcher import DatagramMatcher, RecentDatagrams
from anyecho.errors import EchoMismatch


def sent(*datagrams: bytes) -> DatagramMatcher:
    """A matcher that expects `datagrams`. The first expires at 0, each next one a second later."""
    matcher = DatagramMatcher(RecentDatagrams())
    for expires_at, datagram in enumerate(datagrams):
        matcher.expect(datagram, expires_at=expires_at)
    return matcher


def test_a_reply_matches_the_datagram_with_equal_bytes() -> None:
    matcher = sent(b"a", b"", b"b")

    assert [matcher.match(reply) for reply in (b"a", b"", b"b")] == [True] * 3
    assert (len(matcher), matcher.bytes_outstanding, matcher.answered, matcher.reordered) == (0, 0, 3, 0)
    assert str(matcher) == "0 of 3 datagrams were lost"


def test_equal_datagrams_match_once_each_and_further_replies_are_duplicates() -> None:
    matcher = sent(b"a", b"a")

    assert [matcher.match(b"a") for _ in range(3)] == [True, True, False]
    assert (matcher.answered, matcher.duplicates) == (2, 1)


def test_an_overtaken_reply_is_counted_as_reordered() -> None:
    matcher = sent(b"a", b"b", b"c", b"d")
    for reply in (b"c", b"a", b"b", b"d"):
        matcher.match(reply)

    assert matcher.reordered == 2


def test_an_expired_datagram_is_lost_and_its_late_reply_is_counted() -> None:
    matcher = sent(b"a", b"b", b"c")
    matcher.match(b"a")
    assert matcher.next_expiry == 1
    matcher.expire(1)
    assert matcher.next_expiry == 2
    assert (matcher.lost, len(matcher), matcher.first_missing) == (1, 1, 1)

    assert [matcher.match(b"b"), matcher.match(b"b"), matcher.match(b"c")] == [False, False, True]
    assert (matcher.lost, matcher.late, matcher.duplicates, matcher.reordered) == (1, 1, 1, 0)
    assert str(matcher) == "1 of 3 datagrams were lost, 1 of them only late; 1 came twice"


def test_a_reply_that_overtakes_its_send_leaves_nothing_to_expire() -> None:
    matcher = DatagramMatcher(RecentDatagrams())
    first, second = matcher.expect(b"a"), matcher.expect(b"b")
    matcher.match(b"a")
    for number in (first, second):
        matcher.set_expiry(number, expires_at=1)
    matcher.expire(1)
    assert (matcher.answered, matcher.lost, matcher.first_missing) == (1, 1, 1)


@pytest.mark.parametrize(
    ("reply", "message", "offset"),
    [
        (b"cat", "byte 2 of datagram 1 is wrong: sent 0x72, got 0x74", 3),
        (b"stray", "a datagram of 5 bytes came that was never sent", 4),
        (b"", "a datagram of 0 bytes came that was never sent", 4),
    ],
)
def test_a_reply_that_matches_no_datagram_is_a_mismatch(reply: bytes, message: str, offset: int) -> None:
    with pytest.raises(EchoMismatch) as caught:
        sent(b"a", b"car").match(reply)

    assert (str(caught.value), caught.value.offset) == (message, offset)


def test_a_duplicate_is_recognised_in_later_exchanges_up_to_the_history_size() -> None:
    recent = RecentDatagrams()
    for number in (*range(16_384), 0, 16_384):
        matcher = DatagramMatcher(recent)
        matcher.expect(b"%d" % number, expires_at=0)
        matcher.match(b"%d" % number)

    matcher = DatagramMatcher(recent)
    assert not matcher.match(b"0")
    assert matcher.duplicates == 1
    with pytest.raises(EchoMismatch):
        matcher.match(b"1")


@given(
    st.lists(st.binary(max_size=2), max_size=20).flatmap(
        lambda sent: st.tuples(st.just(sent), st.permutations(sent))
    )
)
def test_replies_in_any_order_match_all_datagrams(case: tuple[list[bytes], list[bytes]]) -> None:
    matcher = sent(*case[0])

    assert all(matcher.match(reply) for reply in case[1])
    assert (len(matcher), matcher.bytes_outstanding) == (0, 0)
    matcher.expire(1000)
    assert matcher.lost == 0
