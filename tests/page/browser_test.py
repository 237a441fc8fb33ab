"""The page in a headless Chromium: searching, playing, keys, dropping files, widths."""

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from tests.page import chromium
from tests.page.pages import live_page
from tests.situations import situation

pytestmark = pytest.mark.skipif(chromium.PATH is None, reason="needs Chromium (Debian: chromium)")

TEXT = "document.querySelector({!r}).textContent"
HITS = "document.querySelectorAll('#hits article').length"
TIME = "document.querySelector('#screen video')?.currentTime"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with live_page(tmp_path_factory.mktemp("browser")) as live:
        yield live


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(browser, live):
    """A fresh page with the answer to a text."""
    browser.events.clear()
    browser.resize(1300, 900)
    browser.open(f"{live.url}?q=a+dog")
    browser.wait(f"{HITS} > 2")
    yield browser
    assert not browser.problems()
    assert all(url.startswith((live.url, "blob:", "data:")) for url in browser.requests())


def test_hits_and_thumbnails(tab, live):
    expected = live.search(text="a dog", k=24)
    names = tab.run("[...document.querySelectorAll('.name')].map((one) => one.textContent)")
    assert names == [hit["path"] for hit in expected]
    tab.wait("[...document.querySelectorAll('.play img')].every((one) => one.naturalWidth > 0)")
    assert "hits in" in tab.run(TEXT.format("#status"))
    assert tab.run(TEXT.format("#size")) == "media: 5 moments of 3 files, 1 unreadable"


@situation(
    "Search page",
    "a hit is played",
    "from its first second to its last; playing again goes on",
    since="0.3.0",
)
def test_a_moment_plays_from_its_start_to_its_end(tab):
    tab.run("$ = document.querySelector('article[aria-label^=\"cam 1/a#1\"]')")
    tab.run("$.querySelector('.play').click()")
    label = tab.run(TEXT.format("#player-name"))
    start, end = (float(part.split(":")[1]) for part in label.split(", ")[1].split(" to "))
    tab.wait("document.querySelector('#screen video')?.readyState >= 2")
    assert tab.run(TIME) >= start - 0.01
    tab.wait(f"{TIME} > {start + 0.2}")
    tab.wait("document.querySelector('#screen video').paused")
    assert tab.run(TIME) == pytest.approx(end, abs=0.2)
    tab.wait("!document.querySelector('#line').hidden")
    assert tab.run("document.querySelector('#curve').getAttribute('d')").startswith("M0.0 ")
    tab.press("Escape")
    tab.wait("!document.querySelector('#player').open")
    assert not tab.run("document.querySelector('#screen video')")


def test_keys(tab):
    tab.run("document.activeElement.blur()")
    tab.press("/")
    assert tab.run("document.activeElement.id") == "text"
    tab.type("a cat")
    assert tab.run("document.querySelector('#text').value") == "a cat"
    tab.press("Enter")
    tab.wait("document.querySelector('#status').textContent.includes('hits in')")
    tab.press("ArrowDown")
    focused = "[...document.querySelectorAll('article')].indexOf(document.activeElement)"
    assert tab.run(focused) == 0
    tab.press("ArrowRight")
    assert tab.run(focused) == 1
    tab.press("Enter")
    tab.wait("document.querySelector('#player').open")
    first = tab.run(TEXT.format("#player-name"))
    tab.press("ArrowRight")
    assert tab.run(TEXT.format("#player-name")) != first
    tab.press("ArrowLeft")
    assert tab.run(TEXT.format("#player-name")) == first
    tab.press("Escape")
    tab.wait("!document.querySelector('#player').open")
    assert tab.run(focused) == 1
    tab.press("Escape")
    assert tab.run("document.activeElement.id") == "text"


def test_more_like_this(tab):
    tab.run("$ = document.querySelector('article[aria-label^=\"b.mp4\"]')")
    tab.run("$.querySelector('.like').click()")
    tab.wait("document.querySelector('#media-name').textContent.startsWith('b.mp4')")
    tab.wait("document.querySelector('.score').textContent === '1.000'")
    assert tab.run(TEXT.format(".name")) == "b.mp4"
    tab.run("document.querySelector('#clear').click()")
    tab.wait(f"{HITS} === 0")


@pytest.mark.parametrize("name", ["photo.png", "b.mp4"])
def test_a_dropped_file_is_searched_for(tab, live, name):
    tab.drop(live.media / name)
    tab.wait("document.querySelector('.score')?.textContent === '1.000'")
    assert tab.run(TEXT.format(".name")) == name
    assert tab.run(TEXT.format("#media-name")) == name
    assert tab.run("document.querySelector('#drop').hidden")
    if name == "photo.png":
        tab.wait("document.querySelector('#preview').naturalWidth > 0")


def test_filters_and_groups(tab):
    tab.run("document.querySelector('#filters').open = true")
    tab.run("document.querySelector('[name=where]').value = 'year>=2020'")
    tab.run(
        "document.querySelector('[name=where]').dispatchEvent(new Event('change', {bubbles: true}))"
    )
    tab.wait(f"{HITS} === 1")
    assert tab.run(TEXT.format("#active")) == "(1)"
    assert tab.run(TEXT.format(".metadata")) == "year: 2020"
    tab.run("document.querySelector('#reset').click()")
    tab.wait(f"{HITS} > 2")
    assert tab.run("document.querySelector('#text').value") == "a dog"
    tab.run("document.querySelector('#group').click()")
    tab.wait(f"{HITS} === 3 && !!document.querySelector('.moments button')")


@situation(
    "Search page",
    "a window of 400, 800 or 1300 pixels, light or dark",
    "nothing overflows, and the text is readable",
    since="0.3.0",
)
@pytest.mark.parametrize("width", [1300, 800, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_widths_and_colours(tab, width, dark):
    tab.resize(width, 800, dark)
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.run("document.querySelector('.play').click()")
    box = tab.run("document.querySelector('#player').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0 and box["right"] <= width and box["bottom"] <= 800
    colour = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (max(int(part) for part in colour[4:-1].split(",")) < 128) is dark
    tab.press("Escape")
