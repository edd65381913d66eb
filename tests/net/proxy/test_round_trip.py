"""Encoding PROXY headers, and properties of the parser for arbitrary bytes."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyecho.errors import UsageError
from anyecho.net.names import SockAddr
from anyecho.net.proxy.header import HEADER_MAX, ProxyProtocolError, encode_header, parse_header
from tests.net.proxy.headers import DESTINATION, DESTINATION6, IPV4, IPV6, SOURCE, SOURCE6, UNIX, checked, tlv, v2

#: A deadline would measure the machine, not the code.
no_deadline = settings(deadline=None)


@pytest.mark.parametrize(
    ("source", "destination", "line", "binary"),
    [
        (SOURCE, DESTINATION, b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", v2(IPV4)),
        (SOURCE6, DESTINATION6, b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n", v2(IPV6, kind=0x21)),
        # As getsockname(2) returns them.
        (
            (*SOURCE6, 0, 0),
            ("2001:db8::2%eth0", 443, 0, 2),
            b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 443\r\n",
            v2(IPV6, kind=0x21),
        ),
        (("::ffff:192.0.2.1", 56324, 0, 0), DESTINATION, b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", v2(IPV4)),
        ("/run/a", b"/run/b", b"PROXY UNKNOWN\r\n", v2(UNIX, kind=0x31)),
        ("", b"\0abstract", b"PROXY UNKNOWN\r\n", v2(bytes(108) + b"\0abstract".ljust(108, b"\0"), kind=0x31)),
        (None, None, b"PROXY UNKNOWN\r\n", v2(command=0x20, kind=0)),
        (SOURCE, None, b"PROXY UNKNOWN\r\n", v2(command=0x20, kind=0)),
        (SOURCE, "/run/b", b"PROXY UNKNOWN\r\n", v2(command=0x20, kind=0)),
    ],
)
def test_every_form_of_a_header_is_encoded(source: object, destination: object, line: bytes, binary: bytes) -> None:
    assert encode_header("v1", source, destination) == line
    assert encode_header("v2", source, destination) == binary


def test_an_ipv4_address_beside_an_ipv6_one_is_mapped() -> None:
    for version in ("v1", "v2"):
        header = parse_header(encode_header(version, SOURCE, DESTINATION6))

        assert header is not None
        assert (header.source, header.destination) == (SOURCE, DESTINATION6)


@pytest.mark.parametrize("wrong", [("localhost", 1), ("192.0.2.1", 65536), ("192.0.2.1", -1), ("", 1), "x" * 109])
def test_an_invalid_address_cannot_be_encoded(wrong: SockAddr) -> None:
    right = DESTINATION if isinstance(wrong, tuple) else ""
    with pytest.raises(UsageError, match=r"^no PROXY header can name "):
        encode_header("v2", right, wrong)


def is_not_mapped(host: str) -> bool:
    return IPv6Address(host).ipv4_mapped is None


ports = st.integers(min_value=0, max_value=65535)
hosts = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str).filter(is_not_mapped)
inet_pairs = st.tuples(st.tuples(hosts, ports), st.tuples(hosts, ports))
paths = st.binary(max_size=108).map(lambda name: name.partition(b"\0")[0].decode("utf-8", "surrogateescape"))
headers = st.builds(
    lambda version, pair: (encode_header(version, *pair), pair), st.sampled_from(["v1", "v2"]), inet_pairs
) | st.tuples(paths, paths).map(lambda pair: (encode_header("v2", *pair), pair))
special_headers = st.sampled_from(
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN \r any\n \r\n",
        v2(kind=0),
        v2(IPV4, command=0x20),
        checked(tlv(1, b"h2")),
    ]
)
#: Headers with a small mutation, some of them valid; random bytes are almost never a header.
mutated = st.builds(
    lambda data, at, junk: data[:at] + junk + data[at + 1 :],
    headers.map(lambda made: made[0]) | special_headers,
    st.integers(min_value=0, max_value=60),
    st.binary(max_size=3) | st.sampled_from([b" ", b"\r", b"\n", b":", b"0", b".", b"%"]),
)


@no_deadline
@given(headers)
def test_an_encoded_header_is_parsed_back(made: tuple[bytes, tuple[SockAddr, SockAddr]]) -> None:
    data, (source, destination) = made

    header = parse_header(data)

    assert header is not None
    assert (header.source, header.destination, header.length) == (source, destination, len(data))


@no_deadline
@given(st.binary(max_size=64) | mutated | special_headers, st.binary(max_size=8))
@example(b"PROXY UNKNOWN ".ljust(105, b"x") + b"\r\n", b"")
def test_any_bytes_are_a_header_or_incomplete_or_a_one_line_error(data: bytes, more: bytes) -> None:
    try:
        header = parse_header(data)
    except ProxyProtocolError as exc:
        message = str(exc)
    else:
        message = ""

    if message:
        assert len(message.splitlines()) == 1
        # Further bytes do not make a wrong header valid.
        with pytest.raises(ProxyProtocolError):
            parse_header(data + more)
        return

    if header is None:
        assert len(data) < HEADER_MAX
        return

    # Bytes after a header do not change it, and each shorter prefix is incomplete.
    assert parse_header(data[: header.length] + more) == header
    assert [parse_header(data[:size]) for size in range(header.length)] == [None] * header.length
