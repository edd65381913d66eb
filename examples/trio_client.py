"""A client on trio that reads an answer of one line to each question: as it was, and mended."""

from __future__ import annotations

from collections.abc import Sequence

import trio


class Truncated(Exception):
    """The connection ended before the last answer was complete."""


async def ask_before(host: str, port: int, questions: Sequence[bytes]) -> list[bytes]:
    """Return the answers to `questions`, if each of them comes, and comes in one piece."""
    answers: list[bytes] = []
    async with await trio.open_tcp_stream(host, port) as stream:
        for question in questions:
            await stream.send_all(question)
            answers.append(await stream.receive_some())

    return answers


async def ask(host: str, port: int, questions: Sequence[bytes], *, timeout: float = 1.0) -> list[bytes]:
    """Return the answers to `questions`. Raises `Truncated`; `trio.TooSlowError` if one takes `timeout` seconds."""
    answers: list[bytes] = []
    received = b""
    async with await trio.open_tcp_stream(host, port) as stream:
        for question in questions:
            with trio.fail_after(timeout):
                await stream.send_all(question)
                while b"\n" not in received:
                    chunk = await stream.receive_some()
                    if not chunk:
                        raise Truncated(f"after {len(answers)} of {len(questions)} answers, and {received!r}")
                    received += chunk

            line, newline, received = received.partition(b"\n")
            answers.append(line + newline)

    return answers
