"""The pages in a headless Chromium, wide and on a phone, light and dark; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from browser import Browser

from twostage.report.compare import write_comparison
from twostage.report.html import write_report

CHROMIUM = browser.find()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")

SCREENS = {
    "desktop": {"width": 1280, "height": 900, "phone": False},
    "phone": {"width": 360, "height": 740, "phone": True},
    "narrow": {"width": 320, "height": 640, "phone": True},
}
# Every text's contrast with what is really behind it: its own and its ancestors' backgrounds, laid over one another.
CONTRAST = """(() => {
  const numbers = text => {
    const srgb = text.match(/^color\\(srgb (.*)\\)$/);
    const parts = (srgb ? srgb[1] : text.replace(/^rgba?\\(|\\)$/g, '')).split(/[\\s,/]+/).filter(Boolean).map(Number);
    const scale = srgb ? 1 : 255;
    return [parts[0] / scale, parts[1] / scale, parts[2] / scale, parts.length > 3 ? parts[3] : 1];
  };
  const over = (top, below) => [0, 1, 2].map(k => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
  const luminance = c => {
    const [r, g, b] = c.slice(0, 3).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(numbers(getComputedStyle(e).backgroundColor));
    const ground = layers.reduce((below, top) => over(top, below), [1, 1, 1, 1]);
    const text = over(numbers(getComputedStyle(element).color), ground);
    const [low, high] = [luminance(ground), luminance(text)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const words = walker.currentNode.textContent.trim().slice(0, 30);
    if (!(ratio >= 4.5)) found.push(`${element.tagName} ${words}: ${ratio.toFixed(2)}`);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(str(CHROMIUM), tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(run_dir: Path, hostile_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    copies = [Path(shutil.copytree(run_dir, folder / f"run-{number}")) for number in range(2)]
    return {
        "plain": write_report(run_dir, folder / "plain.html"),
        "hostile": write_report(hostile_dir, folder / "hostile.html"),
        "compared": write_comparison([*copies, hostile_dir], folder / "compared.html"),
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["plain", "hostile", "compared"])
def test_page(tab: Browser, pages: dict[str, Path], name: str, screen: str, dark: bool) -> None:
    tab.open(pages[name], dark=dark, **SCREENS[screen])     # type: ignore[arg-type]
    assert tab.evaluate("document.readyState") == "complete"
    assert tab.complaints() == [], "the console is not quiet"
    outside = [url for url in tab.requests() if not url.startswith("data:")]
    assert outside == [pages[name].resolve().as_uri()], "a request leaves the page"
    assert not [event for event in tab.events if event.get("method") == "Page.javascriptDialogOpening"]

    width = SCREENS[screen]["width"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert tab.evaluate("innerWidth") == width
    blank = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    assert tab.evaluate(blank) == [], "an image does not show"
    assert tab.evaluate("document.images.length") > 10
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways when all is open"
    assert tab.evaluate(CONTRAST) == [], "text is hard to read"
    if name == "plain":
        wide = "[...document.querySelectorAll('pre.commands, .matrix')].map(e =>"
        wide += " e.scrollWidth > e.parentElement.clientWidth)"
        assert True not in tab.evaluate(wide), "commands or matrices are cut off"


def test_a_page_that_is_not_well_made_is_noticed(tab: Browser, tmp_path: Path) -> None:
    """The checks above can fail."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<script>console.error('no')</script><img src='http://127.0.0.1:9/x.png'>"
        "<p style='width:2000px;color:#888'>pale and wide</p>"
    )
    tab.open(page, width=360, phone=True)
    assert any("no" in text for text in tab.complaints())
    assert "http://127.0.0.1:9/x.png" in tab.requests()
    assert tab.evaluate("document.documentElement.scrollWidth") > 360
    assert [line for line in tab.evaluate(CONTRAST) if line.startswith("P pale and wide: 3.")]


def test_dark_mode_changes_page_and_curves(tab: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    shots = []
    for dark in (False, True):
        tab.open(pages["plain"], width=1280, dark=dark)
        tab.evaluate("document.querySelector('#curves img').scrollIntoView()")
        tab.screenshot(tmp_path / "shot.png", whole=False)
        shots.append((tmp_path / "shot.png").read_bytes())
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(16, 19, 24)" if dark else "rgb(246, 247, 249)"
        )
    assert shots[0] != shots[1]


def test_by_keyboard(tab: Browser, pages: dict[str, Path]) -> None:
    focused = "(e => e.textContent.trim() || e.getAttribute('aria-label'))(document.activeElement)"
    tab.open(pages["plain"], width=1280)
    tab.press("Tab")
    assert tab.evaluate(focused) == "Skip to the results"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0, "the focused link is not seen"
    tab.press("Enter")
    assert tab.evaluate("location.hash") == "#main" and tab.evaluate("document.activeElement.id") == "main"

    tab.open(pages["plain"], width=1280)
    seen = []
    for _ in range(60):
        tab.press("Tab")
        if tab.evaluate("document.activeElement === document.body"):
            break
        seen.append(tab.evaluate(focused).split("\n")[0])
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"{seen[-1]} does not show that it has the focus"
    assert seen[:3] == ["Skip to the results", "Result", "Classes"]
    assert {"config.yaml", "Environment", "Digests (SHA-256)"} <= set(seen)
    assert len(seen) < 45, "too many stops on the way"


def test_details_open_by_keyboard(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["plain"], width=1280)
    tab.evaluate("document.querySelector('summary').focus()")
    tab.press("Enter")
    assert tab.evaluate("document.querySelector('details').open") is True


def test_the_menu_jumps_and_stays_in_view(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["plain"], width=1280)
    tab.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    tab.evaluate("document.querySelector('nav a[href=\"#gallery\"]').click()")
    place = tab.evaluate("document.querySelector('#h-gallery').getBoundingClientRect().top")
    bar = tab.evaluate("document.querySelector('nav').getBoundingClientRect()['bottom']")
    assert bar < place < 200, "the heading lies under the menu, or the page did not move"
    assert tab.evaluate("document.querySelector('nav').getBoundingClientRect().top") == 0
