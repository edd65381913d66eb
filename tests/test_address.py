"""Parsing and formatting addresses, and the exact round trip between both."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyecho.address import Address, FDAddress, ProxyMode, TCPAddress, UDPAddress, UnixAddress, parse_address
from anyecho.errors import AddressError, UsageError

#: A deadline would measure the machine, not the code.
no_deadline = settings(deadline=None)


def printable(*, without: str) -> st.SearchStrategy[str]:
    return st.characters(exclude_categories=("C", "Z"), exclude_characters=without)


def syntax_text(alphabet: str, *, max_size: int) -> st.SearchStrategy[str]:
    """Text of characters that have a meaning in addresses."""
    return st.text(st.sampled_from(alphabet), max_size=max_size)


zones = st.text(printable(without="/]%"), min_size=1, max_size=15)
v6 = st.ip_addresses(v=6).map(str)
hosts = (
    st.text(printable(without="/?#@[]\\%:"), max_size=253)
    | st.ip_addresses(v=4).map(str)
    | v6
    | st.builds("{}%{}".format, v6, zones)
)
ports = st.integers(min_value=0, max_value=65535)
names = st.binary(min_size=1, max_size=107) | syntax_text("/@%?&=#:~ ü", max_size=12).filter(bool).map(os.fsencode)
paths = names.map(lambda name: os.fsdecode(name.replace(b"\0", b"/")))
abstract_names = names.map(lambda name: "\0" + os.fsdecode(name))
descriptor_names = st.text(
    st.characters(min_codepoint=32, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=255
).filter(lambda name: not name.removeprefix("-").isdigit())
modes = st.none() | st.integers(min_value=0, max_value=0o777)

proxies: st.SearchStrategy[ProxyMode | None] = st.sampled_from((None, "off", "v1", "v2", "require"))

addresses: st.SearchStrategy[Address] = st.one_of(
    st.builds(TCPAddress, host=hosts, port=ports, tls=st.booleans(), proxy=proxies),
    st.builds(UDPAddress, host=hosts, port=ports),
    st.builds(UnixAddress, path=paths, tls=st.booleans(), mode=modes, proxy=proxies),
    st.builds(UnixAddress, path=abstract_names, tls=st.booleans()),
    st.builds(FDAddress, fd=st.integers(min_value=0, max_value=2**31 - 1), tls=st.booleans(), proxy=proxies),
    st.builds(FDAddress, fd=descriptor_names, tls=st.booleans(), proxy=proxies),
)

#: Addresses with a small mutation, some of them valid; random text is almost never an address.
texts = st.text(st.characters()) | st.builds(
    lambda address, at, junk: address[:at] + junk + address[at + 1 :],
    addresses.map(str),
    st.integers(min_value=0, max_value=30),
    syntax_text("a1.:[]%25/@?=&#\\ \n\0ü\udcff", max_size=3),
)


@no_deadline
@given(addresses)
@example(UnixAddress(path="//host/path"))
@example(UnixAddress(path="///"))
@example(UnixAddress(path="@not-abstract"))
@example(UnixAddress(path="\0@"))
@example(UnixAddress(path="\0//"))
@example(UnixAddress(path="\0a\0b"))
@example(TCPAddress(host="fe80::1%25", port=1))
@example(TCPAddress(host="fe80::1%eth0:1", port=1))
def test_every_address_survives_the_round_trip(address: Address) -> None:
    text = str(address)

    assert parse_address(text) == address
    assert str(parse_address(text)) == text


@no_deadline
@given(addresses)
def test_every_address_is_written_in_printable_ascii(address: Address) -> None:
    text = str(address)

    assert text.isascii()
    assert text.isprintable()
    assert " " not in text


@no_deadline
@given(texts)
@example("unix:/\udcff")
@example("tcp://\udcff:1")
def test_any_text_is_an_address_or_a_one_line_error(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError as exc:
        message = str(exc)
    else:
        assert parse_address(str(address)) == address
        return

    assert message.startswith(f"bad address {text!r}: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://localhost:10000", TCPAddress(host="localhost", port=10000)),
        ("localhost:10000", TCPAddress(host="localhost", port=10000)),
        ("TCP://localhost:10000", TCPAddress(host="localhost", port=10000)),
        ("127.0.0.1:0", TCPAddress(host="127.0.0.1", port=0)),
        ("tcp://:7", TCPAddress(host="", port=7)),
        (":7", TCPAddress(host="", port=7)),
        (":65535", TCPAddress(host="", port=65535)),
        ("tcp://m%C3%BCller:7", TCPAddress(host="müller", port=7)),
        ("tcp://müller:7", TCPAddress(host="müller", port=7)),
        ("tcp://[::1]:7", TCPAddress(host="::1", port=7)),
        ("[::]:0", TCPAddress(host="::", port=0)),
        ("[::ffff:127.0.0.1]:7", TCPAddress(host="::ffff:127.0.0.1", port=7)),
        ("tls://echo.example:443", TCPAddress(host="echo.example", port=443, tls=True)),
        ("tls://[::1]:443", TCPAddress(host="::1", port=443, tls=True)),
        ("udp://localhost:7", UDPAddress(host="localhost", port=7)),
        ("udp://[::1]:7", UDPAddress(host="::1", port=7)),
        ("unix:/run/echo", UnixAddress(path="/run/echo")),
        ("unix:///run/echo", UnixAddress(path="/run/echo")),
        ("unix:run/echo", UnixAddress(path="run/echo")),
        ("unix:%40x", UnixAddress(path="@x")),
        ("unix:/a%3Fb", UnixAddress(path="/a?b")),
        ("unix:/a b", UnixAddress(path="/a b")),
        ("unix:@echo", UnixAddress(path="\0echo")),
        ("unix:@%40echo", UnixAddress(path="\0@echo")),
        ("unix:@a%00b", UnixAddress(path="\0a\0b")),
        ("unix:/run/echo?mode=660", UnixAddress(path="/run/echo", mode=0o660)),
        ("unix:/run/echo?mode=0600", UnixAddress(path="/run/echo", mode=0o600)),
        ("unix:/run/echo?mode=0", UnixAddress(path="/run/echo", mode=0)),
        ("tls+unix:/run/echo", UnixAddress(path="/run/echo", tls=True)),
        ("tls+unix:@echo", UnixAddress(path="\0echo", tls=True)),
        ("tls+unix:/run/echo?mode=777", UnixAddress(path="/run/echo", tls=True, mode=0o777)),
        ("fd://3", FDAddress(fd=3)),
        ("fd://2147483647", FDAddress(fd=2147483647)),
        ("fd://anyecho.socket", FDAddress(fd="anyecho.socket")),
        ("tls+fd://the%20web", FDAddress(fd="the web", tls=True)),
        ("tls+fd://3", FDAddress(fd=3, tls=True)),
    ],
)
def test_every_form_of_an_address_is_parsed(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (TCPAddress(host="localhost", port=10000), "tcp://localhost:10000"),
        (TCPAddress(host="", port=0), "tcp://:0"),
        (TCPAddress(host="::1", port=7, tls=True), "tls://[::1]:7"),
        (TCPAddress(host="müller", port=7), "tcp://m%C3%BCller:7"),
        (UDPAddress(host="::", port=7), "udp://[::]:7"),
        (UnixAddress(path="/run/echo"), "unix:/run/echo"),
        (UnixAddress(path="/run/echo", mode=0o660), "unix:/run/echo?mode=660"),
        (UnixAddress(path="/a b?c"), "unix:/a%20b%3Fc"),
        (UnixAddress(path="@x"), "unix:%40x"),
        (UnixAddress(path="//x"), "unix:/%2Fx"),
        (UnixAddress(path="\0echo", tls=True), "tls+unix:@echo"),
        (FDAddress(fd=3), "fd://3"),
        (FDAddress(fd="3/?"), "fd://3%2F%3F"),
        (FDAddress(fd=3, tls=True), "tls+fd://3"),
    ],
)
def test_an_address_is_formatted_in_one_form(address: Address, text: str) -> None:
    assert str(address) == text


@pytest.mark.parametrize("text", ["tcp://[fe80::1%eth0]:7", "tcp://[fe80::1%25eth0]:7"])
def test_a_zone_id_survives_the_round_trip(text: str) -> None:
    address = parse_address(text)

    assert address == TCPAddress(host="fe80::1%eth0", port=7)
    assert str(address) == "tcp://[fe80::1%25eth0]:7"


def test_a_path_need_not_be_utf8() -> None:
    address = parse_address("unix:/tmp/%FFecho")

    assert address == UnixAddress(path=os.fsdecode(b"/tmp/\xffecho"))
    assert str(address) == "unix:/tmp/%FFecho"


def test_a_path_that_is_not_utf8_need_not_be_escaped() -> None:
    """The arguments of a process are decoded as file names are (PEP 383)."""
    address = parse_address(os.fsdecode(b"unix:/tmp/\xffecho"))

    assert address == UnixAddress(path=os.fsdecode(b"/tmp/\xffecho"))


@pytest.mark.parametrize("start", ["", "\0"], ids=["path", "abstract"])
@pytest.mark.parametrize("letter", ["x", "ü", "\udcff"], ids=["ascii", "utf8", "byte"])
def test_a_unix_socket_has_a_name_of_107_bytes_at_most(start: str, letter: str) -> None:
    size = len(os.fsencode(letter))
    longest = UnixAddress(path=start + "/" * (107 % size) + letter * (107 // size))

    assert parse_address(str(longest)) == longest
    with pytest.raises(AddressError, match=r"^the path has 108 bytes; a Unix socket's can have 107$"):
        UnixAddress(path=longest.path + "/")


@pytest.mark.parametrize(
    ("address", "is_abstract"),
    [(UnixAddress(path="\0echo"), True), (UnixAddress(path="/echo"), False), (UnixAddress(path="@echo"), False)],
)
def test_only_a_name_after_a_nul_is_abstract(address: UnixAddress, is_abstract: bool) -> None:
    assert address.is_abstract is is_abstract


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Schemes.
        ("http://localhost:80", "no such scheme; there are tcp, tls, udp, unix, fd, tls+unix and tls+fd"),
        ("tls+udp://localhost:80", "no such scheme"),
        ("tls+tcp://localhost:80", "no such scheme"),
        ("unix+tls:///x", "no such scheme"),
        # Hosts and ports.
        ("", "the port is missing: tcp://host:port"),
        ("localhost", "the port is missing: tcp://host:port"),
        ("localhost:", "the port is missing: tcp://host:port"),
        ("tls://localhost", "the port is missing: tls://host:port"),
        ("udp://[::1]", "the port is missing: udp://host:port"),
        ("[::1]77", "the port is missing"),
        ("localhost:http", "the port 'http' is not a number: tcp://host:port"),
        ("localhost:-1", "the port '-1' is not a number"),
        ("localhost:+1", "the port '+1' is not a number"),
        ("localhost: 1", "the port ' 1' is not a number"),
        ("localhost:1_0", "the port '1_0' is not a number"),
        ("localhost:1\n", r"the port '1\n' is not a number"),
        ("localhost:٣", "the port '٣' is not a number"),
        ("localhost:80/", "the port '80/' is not a number"),
        ("localhost:65536", "port 65536 is not in 0..65535"),
        ("two words:1", "'two words' is not a host name"),
        ("user@host:1", "'user@host' is not a host name"),
        ("tcp://host/path:1", "'host/path' is not a host name"),
        ("tcp://a%2Fb:1", "'a/b' is not a host name"),
        ("tcp://a%b:1", "'a%b' is not a host name"),
        ("tcp://a\x1b[31m:1", r"'a\x1b[31m' is not a host name"),
        ("x" * 254 + ":1", "the host has 254 characters; a name can have 253"),
        # IPv6.
        ("::1:80", "an IPv6 address goes in brackets: tcp://[::1]:port"),
        ("tls://fe80::1:80", "an IPv6 address goes in brackets: tls://[::1]:port"),
        ("[::1:80", "the bracket of the IPv6 address is not closed"),
        ("[localhost]:80", "'localhost' in brackets is not an IPv6 address"),
        ("[127.0.0.1]:80", "'127.0.0.1' in brackets is not an IPv6 address"),
        ("[::g]:80", "'::g' is not an IPv6 address"),
        ("[::1/64]:80", "'::1/64' is not an IPv6 address"),
        ("[fe80::1%]:80", "'' is not a zone id, like eth0"),
        ("[fe80::1%25]:80", "'' is not a zone id, like eth0"),
        ("[fe80::1%25a%2Fb]:80", "'a/b' is not a zone id"),
        ("[fe80::1%25a b]:80", "'a b' is not a zone id"),
        ("[fe80::1%25a%1B]:80", r"'a\x1b' is not a zone id"),
        ("[fe80::1%25a%2525]:80", "'a%25' is not a zone id"),
        # Unix.
        ("unix:", "the path is missing: unix:/path or unix:@abstract"),
        ("unix:@", "the path is missing"),
        ("unix:?mode=660", "the path is missing"),
        ("unix://localhost/run", "a Unix path has no host: write unix:/path"),
        ("unix:/a%00b", "a path cannot hold a NUL"),
        ("unix:/" + "x" * 107, "the path has 108 bytes; a Unix socket's can have 107"),
        ("unix:@" + "%FF" * 108, "the path has 108 bytes"),
        ("unix:@x?mode=660", "an abstract name has no mode"),
        ("unix:%00x", "a path cannot hold a NUL"),
        ("unix:/x?mode=888", "mode '888' is not octal, like 660"),
        ("unix:/x?mode=", "mode '' is not octal"),
        ("unix:/x?mode=rw", "mode 'rw' is not octal"),
        ("unix:/x?mode=00660", "mode '00660' is not octal"),
        ("unix:/x?mode=1777", "mode 1777 is not in 0..777 (octal)"),
        # Descriptors.
        ("fd://", "the descriptor is missing: fd://3"),
        ("fd://-1", "descriptor -1 is not in 0..2147483647"),
        ("fd://%33", "'3' is not the name of a descriptor"),
        ("fd://a:b", "'a:b' is not the name of a descriptor"),
        ("fd://%C3%A9", "'é' is not the name of a descriptor"),
        ("fd://a%0A", r"'a\n' is not the name of a descriptor"),
        ("fd://" + "9" * 5000, "descriptor 99999999999999999999 is not in 0..2147483647"),
        ("fd://2147483648", "descriptor 2147483648 is not in 0..2147483647"),
        ("tls+fd://", "the descriptor is missing"),
        # Settings.
        ("unix:/x?", "the setting '' is not name=value"),
        ("unix:/x?mode", "the setting 'mode' is not name=value"),
        ("unix:/x?=660", "the setting '=660' is not name=value"),
        ("unix:/x?mode=660&", "the setting '' is not name=value"),
        ("unix:/x?mode=660&mode=600", "the setting 'mode' is given twice"),
        ("unix:/x?owner=root", "no setting 'owner' here (known: mode, proxy)"),
        ("unix:/x?MODE=660", "no setting 'MODE' here (known: mode, proxy)"),
        ("localhost:1?proxy=v3", "proxy is off, v1, v2, require, not 'v3'"),
        ("udp://localhost:1?proxy=v1", "no setting 'proxy' here (known: none)"),
        ("localhost:1?mode=660", "no setting 'mode' here (known: proxy)"),
        ("udp://localhost:1?mode=660", "no setting 'mode' here (known: none)"),
        ("fd://3?mode=660", "no setting 'mode' here (known: proxy)"),
    ],
)
def test_an_error_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)

    start = f"bad address {text!r}: "
    assert str(caught.value).startswith(start)
    assert words in str(caught.value)[len(start) :]
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["tcp://a%FFb:7", "tcp://[fe80::1%25a%FFb]:7"], ids=["host", "zone"])
def test_percent_encoded_bytes_that_are_not_utf8_are_an_error(text: str) -> None:
    with pytest.raises(AddressError, match=r"^bad address"):
        parse_address(text)


def test_a_very_long_port_is_out_of_range_rather_than_not_a_number() -> None:
    with pytest.raises(AddressError, match=r"is not in 0\.\.65535$"):
        parse_address("localhost:" + "9" * 11)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TCPAddress(host="a b", port=1), "'a b' is not a host name"),
        (lambda: TCPAddress(host="a\udcff", port=1), r"'a\udcff' is not a host name"),
        (lambda: TCPAddress(host="[::1]", port=1), "'[::1]' is not an IPv6 address"),
        (lambda: TCPAddress(host="localhost", port=-1), "port -1 is not in 0..65535"),
        (lambda: UDPAddress(host="localhost", port=65536), "port 65536 is not in 0..65535"),
        (lambda: UDPAddress(host="::1%", port=1), "'' is not a zone id, like eth0"),
        (lambda: UnixAddress(path=""), "the path is missing"),
        (lambda: UnixAddress(path="\0"), "the path is missing"),
        (lambda: UnixAddress(path="a\0b"), "a path cannot hold a NUL"),
        (lambda: UnixAddress(path="/\ud800"), "the path"),
        (lambda: UnixAddress(path="/x", mode=-1), "mode -1 is not in 0..777 (octal)"),
        (lambda: UnixAddress(path="/x", mode=0o1000), "mode 1000 is not in 0..777 (octal)"),
        (lambda: FDAddress(fd=-1), "descriptor -1 is not in 0..2147483647"),
        (lambda: FDAddress(fd=2**31), "descriptor 2147483648 is not in 0..2147483647"),
        (lambda: FDAddress(fd=""), "'' is not the name of a descriptor"),
        (lambda: FDAddress(fd="-1"), "'-1' is not the name of a descriptor"),
        (lambda: FDAddress(fd="x" * 256), "is not the name of a descriptor"),
    ],
)
def test_constructors_check_their_values(make: Callable[[], Address], words: str) -> None:
    with pytest.raises(AddressError) as caught:
        make()

    assert words in str(caught.value)


def test_an_address_error_is_a_usage_error() -> None:
    assert issubclass(AddressError, UsageError)
    assert issubclass(AddressError, ValueError)
