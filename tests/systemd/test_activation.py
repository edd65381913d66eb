"""Socket activation: valid variables name the passed descriptors, malformed variables are an error."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyecho.address import Address, FDAddress, TCPAddress
from anyecho.errors import BindError, StartError
from anyecho.systemd import activation
from anyecho.systemd.activation import Activation, take_activation

#: The first descriptor of these tests, because 3 to 5 are in use in the test process.
FIRST = 700
THREE = range(FIRST, FIRST + 3)
PID = str(os.getpid())


@pytest.fixture(autouse=True)
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Open three inheritable descriptors, as a service manager passes them."""
    monkeypatch.setattr(activation, "_FIRST", FIRST)
    for fd in THREE:
        assert fcntl.fcntl(0, fcntl.F_DUPFD, fd) == fd
    yield
    for fd in THREE:
        os.close(fd)


def refusal(**environ: str) -> str:
    variables = {"LISTEN_PID": PID} | environ
    with pytest.raises(StartError) as caught:
        take_activation(variables)

    assert variables == {}
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_passed_descriptors_have_numbers_and_names() -> None:
    variables = {"LISTEN_PID": PID, "LISTEN_FDS": "3", "LISTEN_FDNAMES": "web:admin:web"}

    assert take_activation(variables).names == dict(zip(THREE, ["web", "admin", "web"], strict=True))


def test_descriptors_without_names_are_called_unknown() -> None:
    assert take_activation({"LISTEN_PID": PID, "LISTEN_FDS": "1"}).names == {FIRST: "unknown"}


@pytest.mark.fault(row=23, injected="passed descriptors are inheritable, and the variables are set")
def test_child_processes_inherit_no_passed_descriptors() -> None:
    variables = {"LISTEN_PID": PID, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "LISTEN_PIDFDID": "7", "HOME": "/"}
    take_activation(variables)

    assert variables == {"HOME": "/"}
    assert [os.get_inheritable(fd) for fd in THREE] == [False, False, True]


@pytest.mark.parametrize("pid", [{}, {"LISTEN_PID": ""}, {"LISTEN_PID": "1"}], ids=["none", "empty", "another"])
def test_descriptors_of_another_process_are_ignored(pid: dict[str, str]) -> None:
    variables = pid | {"LISTEN_FDS": "nonsense", "LISTEN_FDNAMES": "a:b"}

    assert take_activation(variables) == Activation()
    assert variables == {}
    assert all(os.get_inheritable(fd) for fd in THREE)


def test_a_pid_without_descriptors_is_no_activation() -> None:
    assert take_activation({"LISTEN_PID": PID}) == Activation()


@pytest.mark.parametrize("text", ["x", "-1", "0", "+3", " 3", "3 ", "1_0", "٣", "0x3", "3.0", "9" * 5000])
@pytest.mark.parametrize("variable", ["LISTEN_PID", "LISTEN_FDS"])
def test_a_malformed_number_is_a_one_line_error(variable: str, text: str) -> None:
    assert refusal(**{"LISTEN_FDS": "1", variable: text}).startswith(
        f"{variable} is {text!r}, not a number above 0"
    )


def test_a_missing_descriptor_is_a_one_line_error() -> None:
    message = f"LISTEN_FDS says 4, but descriptor {FIRST + 3} is not open"
    assert refusal(LISTEN_FDS="4") == message
    assert refusal(LISTEN_FDS="9999999999") == message.replace("says 4", "says 9999999999")


def test_too_few_names_are_a_one_line_error() -> None:
    assert refusal(LISTEN_FDS="3", LISTEN_FDNAMES="a:b") == "LISTEN_FDS says 3, but LISTEN_FDNAMES has 2: 'a:b'"


words = st.one_of(st.text(), st.sampled_from([PID, "1", "2", "3", "4", "a:b", "::"]))


@given(st.dictionaries(st.sampled_from(["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]), words))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_any_environment_is_accepted_or_a_start_error(environ: dict[str, str]) -> None:
    with suppress(StartError):
        assert set(take_activation(environ).names) <= set(THREE)


WEB = Activation({3: "web", 4: "admin", 5: "web"})


def test_without_addresses_all_passed_descriptors_are_served() -> None:
    assert WEB.resolve([]) == [FDAddress(fd=3), FDAddress(fd=4), FDAddress(fd=5)]
    assert Activation().resolve([]) == []


def test_a_name_is_every_descriptor_that_has_it() -> None:
    found = [FDAddress(fd=fd, tls=True, proxy="v2") for fd in (3, 5)]
    assert WEB.resolve([FDAddress(fd="web", tls=True, proxy="v2")]) == found


def test_addresses_without_a_name_are_unchanged() -> None:
    addresses: list[Address] = [TCPAddress(host="localhost", port=7), FDAddress(fd=9)]

    assert WEB.resolve(addresses) == addresses


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (WEB, "nothing of that name was passed, only 'web', 'admin'"),
        (Activation(), "no service manager passed anything"),
    ],
)
def test_an_unknown_name_is_a_one_line_error(known: Activation, reason: str) -> None:
    with pytest.raises(BindError) as caught:
        known.resolve([FDAddress(fd="Web")])

    assert str(caught.value) == f"cannot listen on fd://Web: {reason}"


def test_unused_descriptors_are_listed() -> None:
    assert WEB.unused([FDAddress(fd=4), TCPAddress(host="", port=3)]) == ["fd://3 (web)", "fd://5 (web)"]
