"""Examples of PROXY headers that the specification allows, and that it forbids."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest

from anyecho.net.names import SockAddr
from anyecho.net.proxy.header import HEADER_MAX, Header, ProxyProtocolError, Versions, parse_header
from tests.net.proxy.headers import (
    DESTINATION,
    DESTINATION6,
    IPV4,
    IPV6,
    SIGNATURE,
    SOURCE,
    SOURCE6,
    UNIX,
    checked,
    crc32c,
    tlv,
    v2,
)


def test_the_checksum_helper_matches_the_standard() -> None:
    # RFC 3720, appendix B.4.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize(
    ("line", "source", "destination"),
    [
        ("PROXY TCP4 192.0.2.1 192.0.2.2 56324 443", SOURCE, DESTINATION),
        ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535", *[("255.255.255.255", 65535)] * 2),
        ("PROXY TCP4 0.0.0.0 0.0.0.0 0 0", *[("0.0.0.0", 0)] * 2),
        ("PROXY TCP6 2001:db8::1 2001:DB8::2 56324 443", SOURCE6, DESTINATION6),
        ("PROXY TCP6 2001:0db8:0000:0:0:0:0:0001 2001:db8:0:0:0:0:0:2 56324 443", SOURCE6, DESTINATION6),
        (
            f"PROXY TCP6 {':'.join(['ffff'] * 8)} {':'.join(['FFFF'] * 8)} 65535 65535",
            *[(":".join(["ffff"] * 8), 65535)] * 2,
        ),
        ("PROXY TCP6 :: ::1 1 2", ("::", 1), ("::1", 2)),
        # HAProxy writes this if only one of the two addresses is IPv4.
        ("PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 56324 443", SOURCE, DESTINATION6),
        ("PROXY TCP6 ::ffff:c000:201 ::ffff:192.0.2.2 56324 443", SOURCE, DESTINATION),
        ("PROXY UNKNOWN", None, None),
        ("PROXY UNKNOWN ", None, None),
        (f"PROXY UNKNOWN {':'.join(['ffff'] * 8)} {':'.join(['ffff'] * 8)} 65535 65535", None, None),
        ("PROXY UNKNOWN  any\rthing\n at all, \xff", None, None),
    ],
)
def test_every_form_of_a_v1_line_is_parsed(
    line: str, source: SockAddr | None, destination: SockAddr | None
) -> None:
    data = line.encode("latin-1") + b"\r\n"

    header = parse_header(data + b"PROXY and more\r\n")

    assert header == Header(version=1, length=len(data), source=source, destination=destination)


@pytest.mark.fault(row=20, injected="malformed v1 headers")
@pytest.mark.parametrize(
    "line",
    [
        # The words and the spaces between them.
        "proxy TCP4 192.0.2.1 192.0.2.2 1 2",
        " PROXY TCP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY  TCP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY\tTCP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP4  192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.1  192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2  1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1  2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 ",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3",
        "PROXY TCP4",
        "PROXY TCP4 ",
        "PROXY",
        "PROXY ",
        # The protocol.
        "PROXY TCP 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP5 192.0.2.1 192.0.2.2 1 2",
        "PROXY tcp4 192.0.2.1 192.0.2.2 1 2",
        "PROXY UDP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY UNKNOWNS",
        "PROXY UNKNOW",
        "PROXY unknown",
        # The addresses.
        "PROXY TCP4 192.0.2.01 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.256 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.1.1 192.0.2.2 1 2",
        "PROXY TCP4 192.0.2.1/32 192.0.2.2 1 2",
        "PROXY TCP4 3221225985 192.0.2.2 1 2",
        "PROXY TCP4 0xc0.0.2.1 192.0.2.2 1 2",
        "PROXY TCP4 localhost 192.0.2.2 1 2",
        "PROXY TCP4 2001:db8::1 2001:db8::2 1 2",
        "PROXY TCP4 192.0.2.1 2001:db8::2 1 2",
        "PROXY TCP4 ¹.0.2.1 192.0.2.2 1 2",
        "PROXY TCP4 \xff 192.0.2.2 1 2",
        "PROXY TCP6 192.0.2.1 192.0.2.2 1 2",
        "PROXY TCP6 2001:db8::1 192.0.2.2 1 2",
        "PROXY TCP6 2001:db8:1 2001:db8::2 1 2",
        "PROXY TCP6 2001::db8::1 2001:db8::2 1 2",
        "PROXY TCP6 2001:0db80::1 2001:db8::2 1 2",
        "PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::2 1 2",
        "PROXY TCP6 fe80::1%eth0 2001:db8::2 1 2",
        "PROXY TCP6 fe80::1%1 2001:db8::2 1 2",
        "PROXY TCP6 fe80::1% 2001:db8::2 1 2",
        "PROXY TCP6 [2001:db8::1] 2001:db8::2 1 2",
        "PROXY TCP6 ::ffff:192.0.2.01 2001:db8::2 1 2",
        # The ports.
        "PROXY TCP4 192.0.2.1 192.0.2.2 65536 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536",
        "PROXY TCP4 192.0.2.1 192.0.2.2 01 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 00",
        "PROXY TCP4 192.0.2.1 192.0.2.2 +80 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 -1 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 8_0 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 0x50 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 8.0 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 http 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 99999999999999999999 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 \u0663 2",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\t",
        # The end.
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\nPROXY TCP4 192.0.2.1 192.0.2.2 1 2",
        "PROXY UNKNOWN\rX",
    ],
)
def test_a_malformed_v1_line_is_refused(line: str) -> None:
    with pytest.raises(ProxyProtocolError) as caught:
        parse_header(line.encode() + b"\r\n")

    assert len(str(caught.value).splitlines()) == 1


def test_a_v1_line_has_at_most_107_bytes() -> None:
    longest = b"PROXY UNKNOWN ".ljust(105, b"x")

    assert parse_header(longest + b"\r\n") == Header(version=1, length=107)
    assert parse_header(longest + b"\r") is None
    for data in (longest + b"x\r\n", longest + b"x\r", longest + b"xx"):
        with pytest.raises(ProxyProtocolError, match=r"^no CRLF within 107 bytes$"):
            parse_header(data)


@pytest.mark.parametrize(
    ("data", "header"),
    [
        (v2(IPV4), Header(version=2, length=28, source=SOURCE, destination=DESTINATION)),
        (v2(IPV4, kind=0x12), Header(version=2, length=28, source=SOURCE, destination=DESTINATION)),
        (v2(IPV6, kind=0x21), Header(version=2, length=52, source=SOURCE6, destination=DESTINATION6)),
        (v2(IPV6, kind=0x22), Header(version=2, length=52, source=SOURCE6, destination=DESTINATION6)),
        (v2(UNIX, kind=0x31), Header(version=2, length=232, source="/run/a", destination="/run/b")),
        (v2(UNIX, kind=0x32), Header(version=2, length=232, source="/run/a", destination="/run/b")),
        # Unspecified family or transport: the rest is skipped.
        (v2(kind=0x00), Header(version=2, length=16)),
        (v2(IPV4, kind=0x00), Header(version=2, length=28)),
        (v2(IPV4, kind=0x01), Header(version=2, length=28)),
        (v2(IPV4, kind=0x10), Header(version=2, length=28)),
        (v2(b"\xff", kind=0x00), Header(version=2, length=17)),
        # LOCAL: a connection of the proxy itself.
        (v2(command=0x20, kind=0x00), Header(version=2, length=16, command="local")),
        (v2(IPV4, command=0x20), Header(version=2, length=28, command="local")),
        (v2(b"\1\2\3", command=0x20, kind=0x21), Header(version=2, length=19, command="local")),
        (v2(command=0x20, kind=0xFF), Header(version=2, length=16, command="local")),
    ],
)
def test_every_form_of_a_v2_header_is_parsed(data: bytes, header: Header) -> None:
    assert parse_header(data) == header
    assert parse_header(data + b"\r\n\r\n and more") == header


@pytest.mark.fault(row=20, injected="malformed v2 headers")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (v2(IPV4, command=0x11), "version 1 of the binary header; there is 2 only"),
        (v2(IPV4, command=0x31), "version 3 of the binary header; there is 2 only"),
        (v2(IPV4, command=0x01), "version 0 of the binary header; there is 2 only"),
        (v2(IPV4, command=0x22), "command 2; there are 0 (LOCAL) and 1 (PROXY)"),
        (v2(IPV4, command=0x2F), "command 15; there are 0 (LOCAL) and 1 (PROXY)"),
        (v2(IPV4, kind=0x41), "address family 4 or transport 1 is not defined"),
        (v2(IPV4, kind=0xF0), "address family 15 or transport 0 is not defined"),
        (v2(IPV4, kind=0x13), "address family 1 or transport 3 is not defined"),
        (v2(IPV4, kind=0x0F), "address family 0 or transport 15 is not defined"),
        (v2(), "0 bytes cannot hold addresses of kind 0x11, which take 12"),
        (v2(IPV4[:-1]), "11 bytes cannot hold addresses of kind 0x11, which take 12"),
        (v2(IPV4[:-1], kind=0x12), "11 bytes cannot hold addresses of kind 0x12, which take 12"),
        (v2(IPV6[:-1], kind=0x21), "35 bytes cannot hold addresses of kind 0x21, which take 36"),
        (v2(IPV6[:-1], kind=0x22), "35 bytes cannot hold addresses of kind 0x22, which take 36"),
        (v2(UNIX[:-1], kind=0x31), "215 bytes cannot hold addresses of kind 0x31, which take 216"),
        (v2(UNIX[:-1], kind=0x32), "215 bytes cannot hold addresses of kind 0x32, which take 216"),
        (v2(bytes(4081), kind=0x00), "a header of 4097 bytes; more than 4096 are not taken"),
        (v2(size=65535, kind=0x00), "a header of 65551 bytes; more than 4096 are not taken"),
        (v2(size=65535, command=0x20), "a header of 65551 bytes; more than 4096 are not taken"),
        (v2(IPV4 + tlv(1, b"h2", size=3)), "a TLV ends 1 bytes behind the header"),
        (v2(IPV4 + tlv(1, b"h2") + b"\1"), "a TLV ends 2 bytes behind the header"),
        (v2(IPV4 + tlv(1, b"h2") + b"\1\0"), "a TLV ends 1 bytes behind the header"),
        (v2(IPV4 + tlv(4, b"", size=65535)), "a TLV ends 65535 bytes behind the header"),
        (v2(IPV4 + tlv(5, bytes(129))), "a unique ID of 129 bytes; it can have 128"),
        (v2(IPV4 + tlv(3, bytes(4))), "the checksum is wrong"),
        (v2(IPV4 + tlv(3, b"")), "the checksum is wrong"),
        (checked(size=5), "the checksum is wrong"),
        (checked()[:-1] + b"\0", "the checksum is wrong"),
        (checked().replace(IPV4[:4], b"\x0a\0\0\1"), "the checksum is wrong"),
    ],
)
def test_a_malformed_v2_header_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ProxyProtocolError) as caught:
        parse_header(data)

    assert str(caught.value) == message


def test_the_longest_header_has_4096_bytes() -> None:
    longest = v2(bytes(HEADER_MAX - 16), kind=0x00)

    assert parse_header(longest) == Header(version=2, length=4096)


def test_tlvs_keep_their_order() -> None:
    added = [(1, b"h2"), (2, b"echo.example"), (5, bytes(128)), (0x20, bytes(5)), (1, b""), (0xFF, b"\xff")]
    data = v2(IPV4 + b"".join(tlv(*each) for each in added))

    header = parse_header(data)

    assert header is not None
    assert header.tlvs == tuple(added)


def test_noop_tlvs_are_dropped() -> None:
    header = parse_header(v2(IPV4 + tlv(4, b"") + tlv(1, b"h2") + tlv(4, bytes(9))))

    assert header is not None
    assert header.tlvs == ((1, b"h2"),)


def test_a_correct_checksum_is_accepted_at_any_position() -> None:
    data = checked(before=tlv(1, b"h2"), after=tlv(4, b"xyz"))

    header = parse_header(data + b"the first bytes of the peer")

    assert header is not None
    assert (header.length, header.source) == (len(data), SOURCE)
    assert [kind for kind, _ in header.tlvs] == [1, 3]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"/run/echo", "/run/echo"),
        (b"/run/echo\0whatever was there", "/run/echo"),
        (b"x" * 108, "x" * 108),
        (b"/\xff", "/\udcff"),
        (b"\0abstract", "\0abstract"),
        (b"\0a\0b", "\0a\0b"),
        (b"", ""),
    ],
)
def test_a_unix_address_is_a_path(name: bytes, path: str) -> None:
    header = parse_header(v2(name.ljust(108, b"\0") + bytes(108), kind=0x31))

    assert header is not None
    assert (header.source, header.destination) == (path, "")


def test_a_mapped_address_is_parsed_as_ipv4() -> None:
    mapped = IPv6Address("::ffff:192.0.2.1").packed
    header = parse_header(v2(mapped + IPV6[16:], kind=0x21))

    assert header is not None
    assert (header.source, header.destination) == (SOURCE, DESTINATION6)


@pytest.mark.parametrize(
    "data",
    [
        *(b"G", b"\x16", b"\0", b"h", b"\xff", b"\n", b" "),
        *(b"PU", b"PROXY\r", b"PROXY\0", b"PROXY X", b"PROXY TCP5", b"PROXY UNKNOWNS", b"PROXY UNKNOWN\rX"),
        *(b"PROXY TCP4\r", b"PROXY TCP4 x", b"PROXY TCP4 1\n", b"PROXY TCP4 1\r1", b"PROXY TCP6 %"),
        *(b"\r\r", b"\r\n\r\n\r", SIGNATURE[:-1] + b"\r"),
        *(SIGNATURE + b"\x11", SIGNATURE + b"\x22", SIGNATURE + b"\x21\x40", SIGNATURE + b"\x21\x13"),
        *(SIGNATURE + b"\x21\x11\x00\x0b", SIGNATURE + b"\x21\x00\x0f\xf1"),
    ],
)
def test_invalid_bytes_are_refused_at_the_first_wrong_byte(data: bytes) -> None:
    assert parse_header(data[:-1]) is None
    with pytest.raises(ProxyProtocolError):
        parse_header(data)


@pytest.mark.parametrize(
    ("versions", "v1_accepted", "v2_accepted"),
    [("v1", True, False), ("v2", False, True), ("require", True, True)],
)
def test_only_the_accepted_versions_are_parsed(versions: Versions, v1_accepted: bool, v2_accepted: bool) -> None:
    for data, accepted in ((b"PROXY UNKNOWN\r\n", v1_accepted), (v2(IPV4), v2_accepted)):
        # The first byte tells.
        for size in (1, len(data)):
            if accepted:
                parse_header(data[:size], versions)
                continue
            with pytest.raises(ProxyProtocolError, match=rf"^no PROXY {versions} header: it begins with b['\"]"):
                parse_header(data[:size], versions)

    assert parse_header(b"", versions) is None


def test_received_bytes_are_escaped_in_the_error() -> None:
    with pytest.raises(ProxyProtocolError, match=r"^no PROXY v1 or v2 header: it begins with b'\\x1b\[2J\\n'$"):
        parse_header(b"\x1b[2J\n")
