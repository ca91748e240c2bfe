"""The page of clip-gallery in a real, headless Chromium: it opens, searches, filters and follows addresses; no script gets in."""

import io
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from helpers.browser import Browser
from helpers.gallery_command import ATTACKS, hostile, records, units_bundle
from PIL import Image

from cliptools.front.unit_records import order_units, signed_words
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded

Run = Callable[..., subprocess.CompletedProcess[bytes]]
UNITS = 4000
WORDS = [f"word {i}" for i in range(300)] + ["black cat", "rare thing"]
BUNDLE = units_bundle(UNITS, [f"photos/{i:03d}.png" for i in range(400)], WORDS)
COUNT = "return document.getElementById('count').textContent"
CARDS = "return [...document.querySelectorAll('.card')].map(card => card.getAttribute('href'))"
NAMED = ("image", "link", "button", "searchbox", "slider", "combobox", "checkbox", "dialog")
TITLE = "return document.getElementById('detail').open ? document.getElementById('detail-title').textContent : null"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    done = run("gallery", "-o", folder / "gallery.html", *records(BUNDLE, folder), stdin=BUNDLE.to_bytes())
    assert done.returncode == 0, done.stderr.decode()
    return folder / "gallery.html"


@pytest.fixture
def window(browser: Browser, page: Path) -> Iterator[Browser]:
    """Yield the page in a new window of the first size; the console must stay empty until the test ends."""
    browser.size(1280, 900)
    browser.dark(False)
    browser.messages()
    browser.open(page)
    browser.settled()
    yield browser
    assert browser.messages() == []


def address(row: int) -> str:
    layer, neuron, _ = BUNDLE["unit"][row].tolist()
    return f"#layer-{layer}-neuron-{neuron}"


def addresses(rows: np.ndarray) -> list[str]:
    return [address(int(row)) for row in rows]


def having(text: str) -> np.ndarray:
    """Return the rows that have a word with this part."""
    found = [j for j, word in enumerate(BUNDLE.text_list("words")["texts"]) if text in word]
    return np.isin(BUNDLE["word"], found).any(axis=1)


def largest(row: int, parts: tuple[str, ...]) -> float:
    """Return the largest coefficient of a unit's words that have one of the parts, as the page rounds it."""
    texts = BUNDLE.text_list("words")["texts"]
    pairs = zip(BUNDLE["word"][row], BUNDLE["coefficient"][row], strict=True)
    return max(rounded(value, 3) for j, value in pairs if any(part in texts[j] for part in parts))


def colours(data: bytes) -> set[tuple[int, int, int]]:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((160, 112), Image.Resampling.NEAREST)
    return {image.getpixel((x, y)) for x in range(image.width) for y in range(image.height)}


def test_it_opens_with_few_cards_of_thousands(window: Browser) -> None:
    assert window.run(COUNT) == "4,000 neurons"
    cards = window.run(CARDS)
    assert 12 <= len(cards) < 60 and cards == addresses(order_units(BUNDLE, "clear"))[: len(cards)]
    assert len(colours(window.picture())) > 50
    loaded = (
        "return [...document.images].every(image => image.complete && image.naturalWidth > 0 && image.alt.includes('photos/'))"
    )
    assert window.run(loaded) and window.run("return document.images.length") == 6 * len(cards)
    assert window.run("return performance.timing.domComplete - performance.timing.responseEnd") < 5000


def test_it_asks_for_nothing_but_itself(window: Browser, page: Path) -> None:
    window.asked_for()
    window.open(page, "#concepts")
    window.keys("End")
    asked = [url for url in window.asked_for() if not url.startswith(("data:", "chrome", "about:"))]
    assert asked and all(url.startswith(page.as_uri()) for url in asked)


def test_scrolling_makes_cards_and_takes_them_away(window: Browser) -> None:
    window.run("scrollTo(0, document.documentElement.scrollHeight)")
    window.settled()
    cards = window.run(CARDS)
    assert len(cards) < 60 and cards[-1] == addresses(order_units(BUNDLE, "clear"))[-1]
    window.run("scrollTo(0, 0)")
    window.settled()
    assert window.run(CARDS)[0] == addresses(order_units(BUNDLE, "clear"))[0]


def test_search_by_words_and_by_units(window: Browser) -> None:
    window.keys("/", "black CAT")
    rows = order_units(BUNDLE, "clear")
    found = rows[(having("black") & having("cat"))[rows]]
    found = np.array(sorted(found, key=lambda row: -largest(row, ("black", "cat"))))  # by the coefficient of the words
    assert window.run(COUNT) == f"{len(found)} of 4,000 neurons" and 0 < len(found) < 200
    assert window.run(CARDS) == addresses(found)[: len(window.run(CARDS))]
    marks = "return [...document.querySelectorAll('.card')].every(card => card.querySelector('mark'))"
    assert window.run(marks)
    window.keys("Escape", "/", "6:101")
    assert window.run(CARDS) == ["#layer-6-neuron-101"] and window.run(COUNT) == "1 of 4,000 neurons"
    window.keys("Escape", "/", "7:")
    assert window.run(COUNT) == f"{(BUNDLE['unit'][:, 0] == 7).sum():,} of 4,000 neurons"
    window.keys("Escape", "/", "nowhere to be found")
    assert window.run("return !document.getElementById('nothing').hidden") and window.run(CARDS) == []


def test_filters_and_orders(window: Browser) -> None:
    window.click("#layers button:nth-of-type(2)")
    rows = order_units(BUNDLE, "clear")
    of_layer = BUNDLE["unit"][:, 0] == 6
    assert window.run(CARDS) == addresses(rows[of_layer[rows]])[: len(window.run(CARDS))]
    window.run("const least = document.getElementById('least'); least.value = 0.9; least.dispatchEvent(new Event('input'))")
    kept = of_layer & (BUNDLE["explained"] >= 0.9)
    assert abs(int(window.run(COUNT).split(" ")[0]) - kept.sum()) <= 2  # explained is shown with three digits
    window.run(
        "const order = document.getElementById('order'); order.value = 'explained'; order.dispatchEvent(new Event('change'))"
    )
    best = order_units(BUNDLE, "explained")
    assert window.run(CARDS) == addresses(best[kept[best]])[: len(window.run(CARDS))]
    window.click("#layers button:nth-of-type(2)")
    assert window.run("return document.querySelectorAll('#layers [aria-pressed=true]').length") == 0


def test_each_unit_has_an_address(window: Browser, page: Path) -> None:
    row = 2345
    window.open(page, address(row))
    assert window.run(TITLE) == "layer {} neuron {}".format(*BUNDLE["unit"][row])
    listed = BUNDLE.text_list("images")
    alts = window.run("return [...document.querySelectorAll('dialog .tops img')].map(image => image.alt)")
    assert [alt.split(": ")[1] for alt in alts] == [listed[i] for i in BUNDLE["top_image"][row]]
    texts = BUNDLE.text_list("words")["texts"]
    words = signed_words(BUNDLE, row)  # in the order of tables and sheets
    said = window.run(
        "return [...document.querySelectorAll('dialog .list dt')].map(dt => [dt.textContent, dt.nextSibling.textContent])"
    )
    assert [word for _, word in said] == [texts[j] for j, _ in words]
    assert [float(c.replace("−", "-")) for c, _ in said] == pytest.approx([weight for _, weight in words], abs=0.011)
    assert window.run("return document.querySelector('dialog svg').getAttribute('aria-label')").startswith(
        "norms of the top 6 images"
    )
    window.run("location.hash = arguments[0]", address(17))
    window.settled()
    assert window.run(TITLE) == "layer {} neuron {}".format(*BUNDLE["unit"][17])
    window.run("history.back()")
    window.settled()
    assert window.run(TITLE) == "layer {} neuron {}".format(*BUNDLE["unit"][row])
    window.open(page, "#layer-99-neuron-1")
    assert window.run(TITLE) is None and window.run(COUNT) == "There is no layer-99-neuron-1 in this gallery."
    window.open(page, "#%E0%A4%A")
    assert window.run(TITLE) is None


def test_keys(window: Browser) -> None:
    rows = addresses(order_units(BUNDLE, "clear"))
    focused = "return document.activeElement.getAttribute('href')"
    window.keys("ArrowRight", "ArrowRight", "ArrowDown")
    assert window.run(focused) == rows[5]  # of four columns
    window.keys("End")
    assert window.run(focused) == rows[-1]
    window.keys("ArrowUp", "Enter")
    assert window.run(TITLE) is not None and window.run("return location.hash") == rows[-5]
    window.keys("ArrowLeft")
    assert window.run("return location.hash") == rows[-6]
    window.keys("Escape")
    assert window.run(TITLE) is None and window.run(focused) == rows[-6] and window.run("return location.hash") == "#neurons"
    inside = "const box = document.activeElement.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight"
    assert window.run(inside)
    window.keys("Home", "/")
    assert window.run("return document.activeElement.id") == "query"


def test_a_word_leads_to_its_units(window: Browser, page: Path) -> None:
    window.open(page, address(9))
    word = window.run("return document.querySelector('dialog .list a').textContent")
    window.click("dialog .list a")
    assert window.run(TITLE) is None and window.run("return document.getElementById('query').value") == word
    terms = having(word.split(" ")[0]) & having(word.split(" ")[-1])
    assert window.run(COUNT) == f"{terms.sum():,} of 4,000 neurons"


def test_images_masks_and_fooled(window: Browser, page: Path) -> None:
    window.click("#tabs a[data-tab=concepts]")
    assert window.run(COUNT) == "2 images" and window.run("return document.querySelector('.card .word').textContent") == "2.5dog"
    window.click(".card")
    assert window.run(TITLE) == "photos/000.png" and window.run("return location.hash") == "#image-photos%2F000.png"
    assert window.run("return document.querySelector('dialog .links a').hash") == "#layer-5-neuron-100"
    window.click("dialog .links a")
    assert window.run(TITLE) == "layer 5 neuron 100"
    window.open(page, "#masks")
    window.click(".card")
    assert window.run(TITLE) == "dog" and window.run("return document.querySelector('dialog img').naturalWidth") == 40
    window.open(page, "#fooled")
    assert window.run(COUNT) == "2 pictures"
    window.click("#only")
    assert window.run(COUNT) == "1 of 2 pictures"
    window.click(".card")
    said = window.run("return document.getElementById('detail').textContent")
    assert "a cat, a boat" in said and "0.070" in said and "scene says: cat, no dog" in said


def test_explained_margins(window: Browser, page: Path) -> None:
    window.click("#tabs a[data-tab=explained]")
    assert window.run(COUNT) == "2 margins" and "boat → dog" in window.run("return document.querySelector('.card').textContent")
    window.click(".card")
    assert window.run(TITLE) == "cat or dog" and window.run("return location.hash") == "#explained-1"
    said = window.run("return document.getElementById('detail').textContent")
    assert "−2.50" in said and "these neurons" in said and "sees boat; writes dog" in said
    assert window.run("return document.querySelector('dialog figure img').naturalWidth") == 50
    bars = window.run("return [...document.querySelectorAll('dialog .list .bar i')].map(bar => bar.className)")
    assert bars == ["less", "more", "more"]
    window.click("dialog .list a")
    assert window.run(TITLE) == "layer 5 neuron 100"


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_be_read(window: Browser, dark: bool) -> None:
    window.dark(dark)
    window.settled()
    paper = window.run("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(paper) < 0.05) == dark
    ground = luminance(window.run("return getComputedStyle(document.querySelector('.card')).backgroundColor"))
    for selector in (".name", ".plus", ".minus", ".share", "#count", ".card .text"):
        ink = luminance(window.run("return getComputedStyle(document.querySelector(arguments[0])).color", selector))
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, selector


def test_a_phone_shows_all_of_its_width(window: Browser, page: Path) -> None:
    window.size(390, 844, 2)
    for fragment in ("", address(3), "#concepts", "#masks", "#explained", "#explained-1", "#fooled", "#image-photos%2F000.png"):
        window.open(page, fragment)
        window.settled()
        assert (
            window.run("return Math.max(document.documentElement.scrollWidth, document.getElementById('detail').scrollWidth)")
            <= 390
        )
    window.open(page)
    assert (
        window.run("return new Set([...document.querySelectorAll('.card')].map(card => card.getBoundingClientRect().left)).size")
        == 1
    )


def test_every_picture_and_control_has_a_name(window: Browser, page: Path) -> None:
    for fragment in ("", address(3), "#concepts", "#masks", "#explained", "#explained-1", "#fooled", "#image-photos%2F000.png"):
        window.open(page, fragment)
        tree = window.command("Accessibility.getFullAXTree")["nodes"]
        named = [node for node in tree if not node["ignored"] and node["role"]["value"] in NAMED]
        assert {"image", "link"} <= {node["role"]["value"] for node in named}
        assert [node["role"]["value"] for node in named if not node["name"]["value"].strip()] == []


def test_a_folder_reads_pictures_when_they_come_into_view(browser: Browser, run: Run, tmp_path: Path) -> None:
    assert run("gallery", "--folder", tmp_path / "g", stdin=BUNDLE.to_bytes()).returncode == 0
    browser.messages()
    browser.asked_for()
    browser.size(1280, 900)
    browser.open(tmp_path / "g" / "index.html")
    browser.settled()
    browser.run("return Promise.all([...document.images].map(image => image.decode()))")
    assert browser.run("return document.images.length > 40 && [...document.images].every(image => image.naturalWidth > 0)")
    asked = {url for url in browser.asked_for() if url.endswith(".jpg")}
    assert 40 < len(asked) < 390 and all(url.startswith((tmp_path / "g").as_uri()) for url in asked)
    assert browser.messages() == []


def test_a_folder_from_a_server(browser: Browser, run: Run, tmp_path: Path) -> None:
    assert run("gallery", "--folder", tmp_path / "g", stdin=units_bundle().to_bytes()).returncode == 0
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *said: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path / "g"))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        browser.messages()
        browser.open(f"http://127.0.0.1:{server.server_port}/", "#layer-5-neuron-100")
        browser.settled()
        browser.run("return Promise.all([...document.images].map(image => image.decode()))")
        assert browser.run(TITLE) == "layer 5 neuron 100" and browser.run("return document.images.length") == 7 * 6 + 6
        assert browser.messages() == []
        browser.open("about:blank")
        server.shutdown()


def test_units_with_heads(browser: Browser, run: Run, tmp_path: Path) -> None:
    assert run("gallery", "-o", tmp_path / "g.html", stdin=units_bundle(heads=True).to_bytes()).returncode == 0
    browser.open(tmp_path / "g.html", "#layer-6-neuron-101-head-1")
    assert browser.run(TITLE) == "layer 6 neuron 101 head 1" and browser.run(COUNT) == "7 pairs"
    browser.keys("Escape", "/", "6:101.1")  # as fast as they can be typed
    assert browser.run("return document.getElementById('query').value") == "6:101.1"
    assert browser.run(CARDS) == ["#layer-6-neuron-101-head-1"]


def test_a_page_without_pictures_or_words_leaves_no_room_for_them(browser: Browser, run: Run, tmp_path: Path) -> None:
    whole = units_bundle(thumbnails=False)
    kept = {k: v for k, v in whole.tensors.items() if k not in ("word", "coefficient", "words", "residual")}
    heights = []
    for name, bundle in (("words", whole), ("neither", Bundle(whole.header, kept)), ("both", units_bundle())):
        run("gallery", "-o", tmp_path / f"{name}.html", stdin=bundle.to_bytes())
        browser.size(1280, 900)
        browser.open(tmp_path / f"{name}.html")
        browser.settled()
        fits = "const said = document.querySelector('.said'); return said.scrollHeight <= said.clientHeight"
        assert browser.run(fits) and browser.run("return document.querySelectorAll('.card').length") == 7
        heights.append(browser.run("return document.querySelector('.card').offsetHeight"))
        browser.click(".card")
        assert browser.run("return document.querySelectorAll('dialog .tops .picture').length") == 6
    assert heights[1] < heights[0] < heights[2]


def test_hostile_texts_and_names_stay_texts(browser: Browser, run: Run, tmp_path: Path) -> None:
    bundle, options = hostile(tmp_path)
    done = run("gallery", "-o", tmp_path / "g.html", *options, stdin=bundle.to_bytes())
    assert done.returncode == 0, done.stderr.decode()
    browser.size(1280, 900)
    browser.messages()
    details = [
        "",
        "#concepts",
        "#masks",
        "#fooled",
        "#layer-5-neuron-100",
        "#mask-1",
        "#mask-11",
        "#explained",
        "#explained-1",
        "#fooled-1",
        "#fooled-2",
    ]
    for fragment in details:
        browser.open(tmp_path / "g.html", fragment)
        browser.settled()
        # Every element is one that the script makes: no attribute that acts, no link that leads out, nothing that is loaded.
        harmless = """return window.attacked === undefined && [...document.body.querySelectorAll('*')].every(element =>
            [...element.attributes].every(({name, value}) => !name.startsWith('on') && (name !== 'href' || value.startsWith('#')))
            && !['IFRAME', 'OBJECT', 'EMBED', 'FORM', 'X'].includes(element.tagName)
            && (element.tagName !== 'IMG' || element.src.startsWith('data:image/jpeg;base64,')))"""
        assert browser.run(harmless), fragment
        assert browser.run("return document.scripts.length") == 2
    browser.open(tmp_path / "g.html", "#layer-5-neuron-100")
    browser.settled()
    row = int(np.flatnonzero((bundle["unit"] == [5, 100, -1]).all(axis=1))[0])
    words = browser.run("return [...document.querySelectorAll('dialog .list a')].map(link => link.textContent)")
    assert sorted(words) == sorted(ATTACKS[j] for j in bundle["word"][row])
    for link in range(2):
        browser.run("document.querySelectorAll('dialog .tops a')[arguments[0]].click()", link)
        browser.settled()
        assert browser.run(TITLE) in {f"{attack}.png" for attack in ATTACKS}
        browser.run("history.back()")
        browser.settled()
    browser.keys("Escape", "/", json.dumps(ATTACKS[0])[1:8])
    assert browser.run("return window.attacked") is None and browser.messages() == []


def test_a_script_that_got_in_would_not_run(browser: Browser, page: Path) -> None:
    """The policy of the page blocks the script, and the console reports it, which shows that the tests read the console."""
    browser.messages()
    browser.open(page)
    refused = """const made = document.createElement('script');
        try { made.textContent = 'window.attacked = 1'; document.body.append(made); } catch (error) { return error.name; }"""
    assert browser.run(refused) == "TypeError"
    assert browser.run("try { document.body.innerHTML = '<b>'; } catch (error) { return error.name; }") == "TypeError"
    browser.run("const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; document.body.append(image)")
    browser.run("return fetch('http://127.0.0.1:9/').catch(() => 0)")
    said = "\n".join(browser.messages())
    assert browser.run("return window.attacked") is None and "Content Security Policy" in said and said.count("127.0.0.1:9") >= 2
