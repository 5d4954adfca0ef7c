"""The report in a real headless Chromium: nothing is wider than the screen or the paper, all of it can be reached."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.chromium import chromium, needs_chromium
from trueport.pipeline.bench import bench
from trueport.pipeline.check import check
from trueport.pipeline.report import write_report
from trueport.runtime.bundle import Bundle
from trueport.runtime.explanation import STAGES, Departure, Explanation, StageResult
from trueport.runtime.verdict import judged, not_run, undecided

PAPER_PX = 703
"""A4 less its margins, in CSS pixels."""
WIDER = """
const width = document.documentElement.clientWidth;
return [...document.querySelectorAll("body *")]
    .filter((one) => one.getBoundingClientRect().right > width + 1 && !one.closest(".hidden, .scroll, svg"))
    .map((one) => `${one.tagName} ${one.className} ${one.textContent.slice(0, 40)}`);
"""

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that it may hold: what failed, what is undecided, what was not run, and an explanation."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    port, bundle = ("fp32", "onnxruntime:cpu"), Bundle.open(bundle_path)
    bound = bundle.variant().bounds.max_abs
    report = check(bundle_path)
    explanation = Explanation(
        variant="fp32",
        runner="onnxruntime:cpu",
        gates=("parity",),
        stage="onnx",
        stages=tuple(
            StageResult(stage=stage, status="departs" if stage == "onnx" else "agrees", detail="67 inputs")
            for stage in STAGES
        ),
        first=(
            Departure(
                layer="features.denseblock4.denselayer16.conv2",
                tensor="a_tensor_with_a_name_that_is_too_long_for_a_phone",
                max_abs=1.234e-3,
                allowed=4.321e-6,
                detail="Conv",
            ),
        ),
        cause="a bias is lost",
        confirmed=True,
        remedy="export again",
        float_layers=("features.denseblock4.denselayer16.conv2", "classifier"),
    )
    verdicts = (
        *report.verdicts,
        judged("parity", *port, {"max_abs": 1.0, "noise_max_abs": 1e-7}, {"max_abs": bound}, "67 inputs"),
        undecided("accuracy", *port, {"drop_high": 3.0}, {"drop_high": 0.5}, "8 samples", 12_345),
        not_run("opening", "fp16", "onnxruntime:cuda", "no/such/place/" * 8),
    )
    report = msgspec.structs.replace(report, verdicts=verdicts, faithful=False, explanations=(explanation,))
    write_report(path, None, bundle, report, bench(bundle_path, batches=[1, 8], seconds=0.1))
    return path


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The only tab, with the page in it."""
    driver = chromium(tmp_path_factory.mktemp("profile"), "--hide-scrollbars")
    try:
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def show(browser: Any, width: int, media: str = "") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": []})


@pytest.mark.parametrize(("width", "media"), [(320, ""), (390, ""), (1280, ""), (PAPER_PX, "print")])
def test_nothing_is_wider_than_what_it_is_shown_on(browser: Any, width: int, media: str) -> None:
    show(browser, width, media)
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script(WIDER) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_headings_tables_and_figures_can_be_found_by_those_who_do_not_see(browser: Any) -> None:
    show(browser, 1280)
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map((one) => +one.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    uncaptioned = "return [...document.querySelectorAll('table')].filter((one) => !one.caption?.textContent).length"
    assert browser.execute_script(uncaptioned) == 0
    unnamed = (
        "return [...document.querySelectorAll('svg')].filter((one) => !one.ariaLabel || one.role !== 'img').length"
    )
    assert browser.execute_script(unnamed) == 0
    unreachable = "return [...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth && one.tabIndex < 0).length"  # noqa: E501
    assert browser.execute_script(unreachable) == 0


def test_what_is_folded_on_a_screen_is_on_paper(browser: Any) -> None:
    show(browser, PAPER_PX, "print")
    hidden = "return [...document.querySelectorAll('.gate, .wide td')].filter((one) => !one.checkVisibility()).length"
    assert browser.execute_script(hidden) == 0
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert printed.startswith(b"%PDF")


def test_the_policy_of_the_page_is_kept(browser: Any) -> None:
    assert [line["message"] for line in browser.get_log("browser")] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == browser.execute_script(
        "return performance.getEntriesByType('resource').filter((one) => one.name.startsWith('data:')).length"
    )
