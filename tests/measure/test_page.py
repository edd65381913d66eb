"""The page of results: complete without script, small, self-contained, quiet in a browser, with nothing cut off."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from anyecho.measure.charts import ranges, spectrum, tick_text
from anyecho.measure.compare import compare, groups
from anyecho.measure.histogram import Histogram
from anyecho.measure.page import page
from anyecho.measure.result import Counts, Document, Part, RunResult, Second
from anyecho.measure.svg import Scale, linear_ticks, log_ticks
from anyecho.measure.time_charts import throughput
from tests.measure.results import document, load, result, second
from tests.support.machine import program

NOTHING = Histogram.from_samples([])
EMPTY = result(
    counts=Counts(sent=0, verified=0, wrong=0, lost=0, connect_failed=2),
    latency=NOTHING,
    uncorrected=NOTHING,
    lag=NOTHING,
    per_second=(),
    error="connection refused",
)


@cache
def repeated(scale: float, seconds: int = 3) -> tuple[RunResult, ...]:
    return tuple(
        replace(result(seed, seconds=seconds, scale=scale * (1 + seed / 100)), load=load(seed=seed))
        for seed in range(5)
    )


def compared(*after: RunResult) -> str:
    documents = [("before.json", document(*repeated(100e3))), ("after.json", document(*after or repeated(130e3)))]
    [one], [other] = (groups(each, name) for name, each in documents)
    return page(documents, [compare(one, other)])


def matrix() -> str:
    runs = [
        replace(run, load=load(server_backend=backend), round=number)
        for backend in ("asyncio", "uvloop", "trio")
        for number, run in enumerate(repeated(100e3))
    ]
    return page([("m.json", document(*runs))])


def seconds_of(count: int) -> RunResult:
    """Return a run of `count` seconds, of which each third is equal."""
    run = result()
    return replace(
        run, per_second=tuple(replace(run.per_second[start % 3], start=float(start)) for start in range(count))
    )


def alone(**fields: Any) -> Callable[[], str]:
    return lambda: page([("a.json", document(result(**fields)))])


PAGES: dict[str, Callable[[], str]] = {
    "one run": alone(seconds=60),
    "a closed loop": alone(
        load=load(rate=None), lag=NOTHING, generator=replace(result().generator, asked_rate=None)
    ),
    "ten minutes": lambda: page([("a.json", document(seconds_of(600)))]),
    "compared": compared,
    "matrix": matrix,
    "no reply": lambda: page([("a.json", document(EMPTY))]),
    "no reply of several runs": lambda: page([("a.json", document(EMPTY, replace(EMPTY, load=load(size=1))))]),
    "no reply in any second": alone(per_second=(second(0.0, []), second(1.0, []))),
    "nothing compared": lambda: compared(replace(EMPTY, server_cpu_per_echo=None)),
    "no run": lambda: page([("a.json", replace(document(), runs=()))]),
    "one reply": lambda: page([("a.json", document(replace(EMPTY, latency=Histogram.from_samples([5000]))))]),
    "shards": alone(
        parts=(
            Part(name="shard 1 of 2", host="here", connections=5, sent=1500, verified=1500, rate=500.0, p50=1e-4),
            Part(name="shard 2 of 2", error="lost: it <was> killed"),
        )
    ),
    "in doubt": alone(interrupted=True, saturated=True),
}


ALL_DRAWINGS = (
    *("Latency by percentile", "Latency over time", "Replies per second", "Latency of each run"),
    "Ratio to the baseline, with 95 % intervals",
)


@cache
def made(name: str) -> str:
    return PAGES[name]()


class Checker(HTMLParser):
    """Collects texts with the drawing around them, and fails on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[list[tuple[str, dict[str, str]]], str]] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [name for name, _ in attrs]
        if tag not in ("meta", "link"):
            place = {"line": str(self.getpos())}
            self.open.append((tag, place | {name: value or "" for name, value in attrs}))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [name for name, _ in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(([*self.open], data))


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed_small_and_refers_to_nothing(name: str) -> None:
    text = made(name)
    assert len(text.encode()) < 200_000
    assert not {"src", "srcset", "onclick", "style"} & {*checked(text).attributes}
    assert re.findall(r"https?:|url\(|@import|href=\"(?!data:,)", text) == []
    # A drawing has its text alternative, or is none but a key beside its name.
    assert re.findall(r"<svg(?![^>]*(?:role=\"img\" aria-label=|aria-hidden=))", text) == []
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(script) < 1000


def extent(attributes: dict[str, str], text: str, letter: float) -> tuple[float, float]:
    """Return where a label begins and ends, if a letter is that wide."""
    long = letter * len(text)
    start = float(attributes["x"]) - {"end": long, "middle": long / 2}.get(attributes.get("text-anchor", ""), 0)
    return start, start + long


@pytest.mark.parametrize("name", PAGES)
def test_no_label_of_a_chart_is_cut_off(name: str) -> None:
    for around, text in checked(made(name)).texts:
        tag, attributes = around[-1]
        if tag == "text":
            width, height = map(float, around[-2][1]["viewbox"].split()[2:])
            start, end = extent(attributes, text, 6.8)
            assert 0 <= start <= end <= width + 2, text
            assert 8 < float(attributes["y"]) < height, text


@pytest.mark.parametrize("name", PAGES)
def test_labels_of_an_axis_do_not_overlap(name: str) -> None:
    rows: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for around, text in checked(made(name)).texts:
        tag, attributes = around[-1]
        if tag == "text":
            start = extent(attributes, text, 6.4)[0]
            rows.setdefault((str(around[-2]), attributes["y"]), []).append((start, start + 6.4 * len(text)))
    for spans in rows.values():
        spans.sort()
        assert all(left[1] <= right[0] for left, right in pairwise(spans)), spans


def test_a_page_has_the_charts_and_the_figures() -> None:
    text = made("one run")
    drawings = re.findall(r'aria-label="(.*?)"', text)
    assert drawings == ["Latency by percentile", "Latency over time", "Replies per second"]
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == ["Latency", "Latency over time", "Replies per second", "Checks", "Machine"]
    assert "<td>corrected</td><td>1000</td><td>100us</td>" in text
    assert "<th>lag</th>" in text


def test_a_long_run_has_at_most_120_columns_with_all_replies() -> None:
    tips = re.findall(r'data-t="(\d+) to (\d+) s\n(\d+) replies', made("ten minutes"))
    assert len(tips) == 2 * 120
    assert tips[0] == ("0", "5", "5000")
    assert sum(int(replies) for _, _, replies in tips) == 2 * 600_000


def test_the_rate_of_the_last_column_is_that_of_its_own_seconds() -> None:
    [bars] = re.findall(r'd="([^"]*)" class="bar"', throughput(seconds_of(121)))
    assert bars.count("z") == 61
    assert len({*re.findall(r"V([\d.]+)H", bars)}) == 1


def test_a_percentile_of_few_replies_is_no_mark_of_a_run() -> None:
    text = ranges(
        [
            (name, result(latency=Histogram.from_samples([5000, 9000] * count)))
            for name, count in (("a", 1), ("b", 500))
        ]
    )
    assert re.findall(r"p99 \S+", text) == ["p99 -", "p99 9.00us"]


def test_a_merged_run_has_a_row_for_each_generator() -> None:
    texts = [text for _, text in checked(made("shards")).texts]
    at = texts.index("Generators")
    assert texts[at + 1 : at + 7] == ["messages", "msg/s", "p50", "p99", "lag p99", "CPU"]
    assert texts[at + 7 : at + 14] == ["shard 1 of 2", "1500", "500.0", "100us", "-", "-", "0%"]
    assert texts[at + 14 : at + 16] == ["shard 2 of 2", "lost: it <was> killed"]
    assert "Generators" not in made("one run")


def test_a_comparison_has_the_ratios_with_their_intervals() -> None:
    text = made("compared")
    assert "<h2>after.json against before.json</h2>" in text
    assert 'aria-label="Ratio to the baseline, with 95 % intervals"' in text
    assert re.search(r"<td>cpu</td><td>22.9us</td><td>29.8us</td><td>1.300</td><td>1.2\d\d to 1.3\d\d</td>", text)


@pytest.mark.parametrize(
    ("name", "drawings"),
    [
        ("no reply of several runs", []),
        ("no reply in any second", ["Latency by percentile", "Replies per second"]),
        ("nothing compared", ["Latency of each run", "Latency by percentile"]),
    ],
)
def test_a_chart_without_anything_to_show_is_left_out(name: str, drawings: list[str]) -> None:
    assert sorted({*re.findall(r'aria-label="(.*?)"', made(name))} & {*ALL_DRAWINGS}) == sorted(drawings)


def test_a_closed_loop_shows_no_rate_that_was_asked_for() -> None:
    assert [("asked: " in made(name)) for name in ("one run", "a closed loop")] == [True, False]


def test_equal_lines_are_named_once() -> None:
    run = result(lag=NOTHING)
    for load_, names in ((load(rate=None), ["latency"]), (load(), ["corrected and uncorrected"])):
        text = page([("a", document(replace(run, load=load_, uncorrected=run.latency)))])
        figure = text.partition("</table>")[2].partition("</svg></span>")
        assert re.findall(r"</svg>([\w ]+)</span>", text.partition("Latency over time")[0]) == names, figure


@pytest.mark.parametrize("cpu", [1e-300, 1e-320, 1e60])
def test_figures_of_any_size_are_drawn_within_the_charts(cpu: float) -> None:
    empty = [Second(start=float(start), verified=0, bytes=0, p50=0.0) for start in range(1, 6)]
    text = compared(*[result(server_cpu_per_echo=cpu, per_second=(second(0.0, [1]), *empty))] * 4)
    assert re.findall(r'"[^"]*(?:nan|inf)[^"]*"', text) == []


def test_what_casts_doubt_on_a_run_is_marked() -> None:
    text = made("in doubt")
    assert re.findall(r'<tr class="bad"><th>! (\w+)</th>', text) == ["saturated", "end"]


def test_runs_and_lines_without_a_place_are_counted_and_their_doubts_are_shown() -> None:
    runs = [result(load=load(size=size)) for size in range(1, 10)]
    text = page([("a", document(*runs, result(load=load(size=10), saturated=True)))])
    assert re.findall('<p class="soft">(The .*?|Charts .*?)</p>', text) == [
        "The first 8 of 10 are drawn.",
        "Charts over time and all checks are of the first 4 of 10 runs.",
    ]
    assert re.findall(r'<tr class="bad"><th>! (.*?)</th>', text) == ["10 bytes: saturated"]


def test_text_of_a_result_file_is_escaped() -> None:
    hostile = '</p><script>alert(1)</script>&"'
    run = result(load=load(address=hostile, server_backend=hostile), error=hostile, notes=(hostile,))
    whole = replace(document(run, replace(run, load=load(server_backend="x"))), command=(hostile,), version=hostile)
    text = page([(hostile, whole), (hostile, whole)])
    assert "<script>alert" not in text
    checked(text)


def test_parts_that_do_not_fit_are_left_out_and_counted() -> None:
    text = page([("a.json", document(*[seconds_of(120)] * 4))] * 8)
    assert len(text.encode()) < 200_000
    assert re.search(r'<p class="bad">\d+ parts are left out, to keep this page small.</p>', text)
    checked(text)


def test_a_spectrum_of_nothing_is_nothing() -> None:
    assert spectrum([("latency", NOTHING)]) == ""


def test_ticks_are_round_and_within_the_axis() -> None:
    assert linear_ticks(7) == [0, 2, 4, 6]
    assert linear_ticks(1080, 3) == [0, 500, 1000]
    assert log_ticks(90, 1100) == pytest.approx([100, 200, 500, 1000])
    assert log_ticks(90, 1.1e6) == pytest.approx([100, 1e3, 1e4, 1e5, 1e6])
    assert [tick_text(each) for each in (0.5, 200, 5e3, 2e6, 1e9)] == ["0.5ns", "200ns", "5us", "2ms", "1s"]
    scale = Scale(1, 100, 0, 10, log=True)
    assert [scale(each) for each in (0.1, 1, 10, 1000)] == [0, 0, 5, 10]


@contextmanager
def served(text: str) -> Iterator[tuple[str, list[str]]]:
    """Serve `text` over HTTP; yield its URL, and the list of requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/page.html", requests
        finally:
            server.shutdown()
            thread.join()


#: A request to another host fails, with a message.
_RESOLVER = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
#: Nothing but the page may be asked for, so the browser must not look for updates, extensions or certificates.
_QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-extensions", "--disable-background-networking", "--disable-component-update"),
    *("--enable-logging=stderr", "--dump-dom"),
]


def messages(log: str) -> list[str]:
    """Return the console messages, but for those of pages of the browser itself, such as "Slow network"."""
    return [line for line in log.splitlines() if "CONSOLE" in line and "source: chrome" not in line]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["one run", "compared"])
def test_a_browser_shows_the_page_without_a_message_and_another_request(name: str, tmp_path: Path) -> None:
    chromium = program("chromium")
    move = "document.querySelector('.h').dispatchEvent(new MouseEvent('mousemove',{bubbles:true}))"
    text = made(name).replace("</body>", f"<script>{move}</script></body>")
    with served(text) as (url, requests):
        command = [chromium, *_QUIET, _RESOLVER, f"--user-data-dir={tmp_path}", url]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)

    assert requests == ["/page.html"]
    assert messages(ended.stderr) == []
    for chart in re.findall('aria-label=".*?"', text):
        assert chart in ended.stdout
    tip = re.search(r'<div id="tip" style=".*?">(.*?)</div>', ended.stdout, re.DOTALL)
    assert tip is not None
    assert tip[1].count("\n") >= 2


@pytest.mark.timeout(180)
def test_a_message_of_a_page_would_be_noticed(tmp_path: Path) -> None:
    chromium = program("chromium")
    text = '<title>x</title><link rel="icon" href="data:,"><script>console.log("noise")</script><img src="/image">'
    with served(text) as (url, requests):
        command = [chromium, *_QUIET, f"--user-data-dir={tmp_path}", url]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)

    assert requests == ["/page.html", "/image"]
    assert "noise" in "".join(messages(ended.stderr))


def test_pages_are_read_from_the_documents_that_were_written() -> None:
    whole = document(result(seconds=5))
    assert page([("a", Document.from_json(whole.to_json()))]) == page([("a", whole)])
