"""The page in a real headless Chromium: pictures dropped and chosen, live figures, tokens, narrow screens."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from tests.chromium import TIMEOUT_S, chromium, needs_chromium
from trueport.runtime import Session
from trueport.runtime.server import Access, App, ServerLimits

PASSED = "digits 1: golden set passed, 67 golden inputs"
LABELS = ("zero", "one", "two", "three", "four", "<b>five</b>", "six")

pytestmark = needs_chromium


class Page:
    """The browser's only tab."""

    def __init__(self, folder: Path) -> None:
        self.driver = chromium(folder, "--window-size=1200,900")

    def open(self, address: str, path: str = "/") -> None:
        self.driver.get(f"http://{address}{path}")

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """Of the first that matches, as it is seen, with plain spaces; empty where there is none."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)).replace(
            "\xa0", " "
        )

    def texts(self, selector: str) -> list[str]:
        found = self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)", selector)
        return [text.replace("\xa0", " ") for text in found]

    def seen(self, selector: str) -> bool:
        return bool(self.run("return document.querySelector(arguments[0])?.checkVisibility() ?? false", selector))

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def type(self, selector: str, text: str) -> None:
        self.driver.find_element("css selector", selector).send_keys(text)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        end_s = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end_s, f"never seen: {what}; the page says {self.text('body')!r}"
            time.sleep(0.02)

    def wait_for(self, selector: str, text: str) -> None:
        self.wait(lambda: text in self.text(selector), f"{text!r} in {selector}")

    def drop(self, name: str, data: bytes, kind: str) -> None:
        """As if somebody dragged a file over the page and let it go."""
        self.run(
            """
            const bytes = Uint8Array.from(atob(arguments[1]), (one) => one.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], arguments[0], { type: arguments[2] }));
            const how = { dataTransfer, bubbles: true, cancelable: true };
            for (const kind of ["dragover", "drop"])
              document.getElementById("drop").dispatchEvent(new DragEvent(kind, how));
            """,
            name,
            base64.b64encode(data).decode(),
            kind,
        )

    def width(self, pixels: int) -> None:
        metrics = {"width": pixels, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def complaints(self) -> list[str]:
        """Of the console since it was asked last: errors, warnings, what the page's policy forbade."""
        return [entry["message"] for entry in cast("Any", self.driver).get_log("browser")]

    def best(self) -> list[str]:
        """The labels and scores that are shown."""
        self.wait(lambda: self.texts("#answer .top li") and not self.seen("#answer[aria-busy]"), "an answer")
        return [" ".join(text.split()) for text in self.texts("#answer .top li")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    page = Page(tmp_path_factory.mktemp("chromium"))
    yield page
    page.driver.quit()


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    browser.driver.get("about:blank")
    browser.complaints()
    yield browser
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def session(session_of: Callable[..., Session]) -> Iterator[Session]:
    with session_of(labels=LABELS) as session:
        yield session


@pytest.fixture(scope="module")
def several(session_of: Callable[..., Session], session: Session) -> Iterator[list[Session]]:
    second = session_of(version="2", labels=LABELS)
    quarters = session_of("quarters", task="multilabel", labels=("left", "middle", "right"))
    yield [session, second, quarters]
    second.close()
    quarters.close()


@pytest.fixture
def address(running: Any, session: Session) -> Iterator[str]:
    with running([session], passed=PASSED) as address:
        yield address


def picture(first: Sequence[int]) -> bytes:
    """A PNG that begins with these pixels, which become the logits, each a 32nd."""
    rows = np.zeros(64, np.uint8)
    rows[: len(first)] = first
    stream = io.BytesIO()
    Image.fromarray(rows.reshape(8, 8)).save(stream, "PNG")
    return stream.getvalue()


def told(session: Session, data: bytes) -> list[str]:
    """What the page has to show of this picture."""
    return [f"{score.label} {score.score:.1%}".replace("%", " %") for score in session.classify(data)[0].top]


def post(address: str, count: int, body: bytes = bytes(64), path: str = "/v2/models/digits/infer") -> None:
    client = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        for _ in range(count):
            client.request("POST", path, body, {"Inference-Header-Content-Length": "0"})
            client.getresponse().read()
    finally:
        client.close()


def test_the_models_are_told_and_nothing_is_complained_about(page: Page, address: str, session: Session) -> None:
    page.open(address)
    page.wait_for("#state", "1 model ready")
    assert page.text(".model h3").startswith("digits version 1")
    facts = dict(text.split("\n") for text in page.texts(".facts > div"))
    assert facts["Variant"] == "fp32"
    assert facts["Runner"] == "onnxruntime:cpu"
    assert facts["Takes"] == "8 × 8, grey"
    assert facts["Answers"] == "7 labels"
    assert page.text(".verdict.passed") == "golden set passed, 67 golden inputs"
    assert page.text(".chosen") == f"Chosen {session.chosen}"
    assert not page.seen("#unlock")
    assert page.complaints() == []


def test_the_policy_is_in_force(page: Page, address: str) -> None:
    page.open(address)
    page.wait_for("#state", "ready")
    page.run("document.body.setAttribute('style', 'color: red'); fetch('http://127.0.0.2:9/').catch(() => 0)")
    complaints = page.complaints()
    for directive in ("style-src", "connect-src"):
        assert any(directive in complaint for complaint in complaints), complaints


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_a_picture_is_answered_as_the_session_does(
    page: Page, address: str, session: Session, tmp_path: Path, way: str
) -> None:
    data = picture([3, 9, 200, 40, 250, 90, 17])
    page.open(address)
    page.wait_for("#state", "ready")
    if way == "dropped":
        page.drop("a digit.png", data, "image/png")
    else:
        file = tmp_path / "a digit.png"
        file.write_bytes(data)
        page.type("#file", str(file))
    assert page.best() == told(session, data)
    assert len(page.best()) == 5
    assert page.text("#file-name") == "a digit.png"
    assert page.run("return document.getElementById('preview').naturalWidth") == 8
    times = dict(text.split("\n") for text in page.texts(".times > div"))
    assert {"decode", "queue", "compute", "batch", "round trip"} == times.keys()
    assert times["round trip"].endswith("s")
    assert page.complaints() == []


def test_bars_are_as_long_as_the_scores(page: Page, address: str, session: Session) -> None:
    data = picture([0, 64, 32])
    page.open(address)
    page.wait_for("#state", "ready")
    page.drop("x.png", data, "image/png")
    page.best()
    shown = page.run("return [...document.querySelectorAll('.bar')].map((bar) => parseFloat(bar.style.width) / 100)")
    np.testing.assert_allclose(shown, [score.score for score in session.classify(data)[0].top], rtol=1e-4)


def test_names_are_text_and_never_markup(page: Page, address: str) -> None:
    page.open(address)
    page.wait_for("#state", "ready")
    name = "<img src=x onerror=alert(1)>.png"
    page.drop(name, picture([0, 0, 0, 0, 0, 255]), "image/png")
    assert page.best()[0].startswith("<b>five</b> ")
    assert page.text("#file-name") == name
    assert page.run("return document.querySelectorAll('#answer b, #file-name img').length") == 0
    assert page.complaints() == []


def test_figures_move_under_load(page: Page, address: str) -> None:
    page.open(address)
    page.wait_for("#tile-throughput", "0 in all")
    assert "0 of 662 answers needed" in page.text("#tile-latency-p99")
    post(address, 700)
    post(address, 3, b"too short")
    page.wait_for("#tile-throughput", "700 in all")
    page.wait_for("#tile-errors", "3 bad request")
    assert float(page.text("#tile-throughput .number").replace(",", "")) > 0
    for tile in ("#tile-latency-p50", "#tile-latency-p99"):
        assert float(page.text(f"{tile} .number")) > 0
        assert page.text(f"{tile} .below").startswith(("between ", "above "))
    assert page.text("#tile-batch-fill .value") == "1 row"
    assert page.text("#tile-batch-fill .below") == "3 % of 32"
    assert page.text("#tile-queue .value") == "0 rows"
    page.wait(
        lambda: len(page.run("return document.querySelector('#tile-throughput polyline').points")) > 1, "a course"
    )


def test_a_token_is_asked_for_kept_and_forgotten(page: Page, running: Any, session: Session) -> None:
    data = picture([7, 70])
    with running([session], access=Access("sesame")) as address:
        page.open(address)
        page.wait(lambda: page.seen("#unlock"), "the question for a token")
        assert not page.seen("#content")
        page.type("#token", "open\n")
        page.wait_for("#unlock-why", "does not take that token")
        page.type("#token", "sesame\n")
        page.wait_for("#state", "1 model ready")
        assert not page.seen("#unlock")
        page.drop("x.png", data, "image/png")
        assert page.best() == told(session, data)
        page.driver.refresh()
        page.wait_for("#state", "1 model ready")
        page.open(address, "/docs")
        page.wait_for("#state", "API")
        page.open(address)
        page.wait(lambda: page.seen("#forget"), "the button to forget the token")
        page.click("#forget")
        page.wait(lambda: page.seen("#unlock"), "the question for a token")
        assert page.run("return sessionStorage.length") == 0


def test_what_is_no_picture_is_answered_with_the_servers_sentence(page: Page, address: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("these are no pixels")
    page.open(address)
    page.wait_for("#state", "ready")
    page.type("#file", str(file))
    page.wait_for("#answer .problem", "not a picture of a known format")
    page.wait(lambda: not page.seen("#preview"), "no preview of what is no picture")
    page.drop("x.png", picture([1]), "image/png")
    assert len(page.best()) == 5
    assert not page.seen(".problem")


def test_what_is_too_large_is_not_even_sent(page: Page, running: Any, session: Session) -> None:
    with running([session], ServerLimits(max_body_bytes=200)) as address:
        page.open(address)
        page.wait_for("#state", "ready")
        page.drop("large.png", bytes(201), "image/png")
        page.wait_for("#answer .problem", "large.png has 201 bytes, the server takes at most 200.")
    assert page.complaints() == []


def test_several_models_are_chosen_by_name_and_version(page: Page, running: Any, several: list[Session]) -> None:
    data = picture([0, 0, 255])
    with running(several, passed=PASSED) as address:
        page.open(address)
        page.wait_for("#state", "3 models ready")
        assert [text.split("\n")[0] for text in page.texts(".model h3")] == [
            "digits version 1",
            "digits version 2",
            "quarters version 1",
        ]
        page.click("input[value='digits/2']")
        assert page.texts(".subject") == ["digits, version 2"] * 2
        page.drop("x.png", data, "image/png")
        assert page.best() == told(several[1], data)
        page.click("input[value='quarters/1']")
        page.wait(lambda: page.best() == told(several[2], data), "the other model's answer")
        assert page.texts(".said .label") == ["right"]
        assert "judged by itself" in page.text("#answer")
        page.wait_for("#tile-throughput", "1 in all")


def test_the_servers_going_and_coming_is_noticed(page: Page, running: Any, session: Session) -> None:
    data = picture([1])
    with running([session]) as address:
        page.open(address)
        page.wait_for("#state", "1 model ready")
        post(address, 5)
        page.wait_for("#tile-throughput", "5 in all")
    page.wait_for("#state", "does not answer")
    page.drop("x.png", data, "image/png")
    page.wait_for("#answer .problem", "The server does not answer.")
    with running([session], port=int(address.rpartition(":")[2])):
        page.wait_for("#state", "1 model ready")
        page.wait_for("#tile-throughput", "0 in all")
        page.drop("x.png", data, "image/png")
        assert page.best() == told(session, data)


def test_nothing_is_asked_while_nobody_looks(page: Page, address: str) -> None:
    asked = "return performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/status')).length"
    hide = """
        const hidden = arguments[0];
        Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
        document.dispatchEvent(new Event("visibilitychange"));
    """
    page.open(address)
    page.wait_for("#state", "1 model ready")
    page.wait(lambda: page.run(asked) > 1, "a second question")
    page.run(hide, True)
    time.sleep(0.2)  # one may be under way
    before = page.run(asked)
    time.sleep(1.3)
    assert page.run(asked) == before
    page.run(hide, False)
    page.wait(lambda: page.run(asked) > before, "another question")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_phone_needs_no_scrolling_sideways(page: Page, running: Any, several: list[Session], path: str) -> None:
    page.width(360)
    with running(several, passed=PASSED) as address:
        page.open(address, path)
        page.wait_for("#state", "ready" if path == "/" else "API")
        if path == "/":
            page.drop("a-long-name-" * 10 + ".png", picture([1]), "image/png")
            page.best()
        else:
            page.run("for (const fold of document.querySelectorAll('details')) fold.open = true")
        assert page.run("return document.documentElement.scrollWidth") <= 360


def test_the_docs_tell_every_route(page: Page, address: str) -> None:
    client = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    client.request("GET", "/openapi.json")
    paths = json.loads(client.getresponse().read())["paths"]
    client.close()
    page.open(address, "/docs")
    page.wait_for("#state", "API")
    assert sorted(page.texts("summary code")) == sorted(paths)
    page.click("#content section:last-of-type details:last-of-type summary")
    opened = page.text("details[open]")
    assert '"shape": [integer from 1 to 32, 8, 8, 1]' in opened
    assert "Inference-Header-Content-Length" in opened
    assert page.complaints() == []


def test_it_works_below_a_prefix(page: Page, session: Session) -> None:
    data = picture([2, 20, 200])
    with mounted(App([session], gate=None)) as address:
        page.open(address, "/models/")
        page.wait_for("#state", "1 model ready")
        page.drop("x.png", data, "image/png")
        assert page.best() == told(session, data)
        page.click("nav a")
        page.wait_for("#state", "API")
        assert page.driver.current_url == f"http://{address}/models/docs"
    assert page.complaints() == []


@contextmanager
def mounted(app: App) -> Iterator[str]:
    """Another application that has ours under /models, on a free port."""
    import uvicorn

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/models"} if scope["type"] == "http" else scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(cast("Any", outer), loop="asyncio", ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield ":".join(map(str, listener.getsockname()))
    finally:
        server.should_exit = True
        thread.join()
