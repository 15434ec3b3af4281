"""Pages in a real browser: headless Chromium, without a network."""

import shutil

import pytest
import torch
from torch import nn

import fxtie

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs apt install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens something's page, and sees at the end that the browser had nothing to complain of."""
    complaints, contexts = [], []

    def show(thing, **options):
        path = tmp_path / "page.html"
        thing.html(path)
        context = browser.new_context(
            offline=True, viewport={"width": 1400, "height": 900}, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert not complaints


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


def blocks(n):
    net = nn.Sequential(*(Block() for _ in range(n)))
    rules = [fxtie.Rule("*.up", "0.up", weight=torch.neg), fxtie.Rule("*.down", "0.down")]
    return net, rules, fxtie.transform(net, rules)


def is_open(section):
    return section.evaluate("element => element.open")


def test_layers_fold_and_unfold(show):
    net, _, tied = blocks(3)
    page = show(fxtie.diff(net, tied))
    section = page.locator('[id="layer::1.up"]')
    assert is_open(section)
    assert section.locator("svg").first.is_visible()
    section.locator("summary").click()
    assert not is_open(section)
    assert not section.locator("svg").first.is_visible()
    page.click("#unfold")
    assert all(is_open(s) for s in page.locator(".section").all())
    page.click("#fold")
    assert not any(is_open(s) for s in page.locator(".section").all())


def test_search_hides_the_rest_and_marks_hits(show):
    net, _, tied = blocks(4)
    page = show(fxtie.diff(net, tied))
    total = page.locator(".section").count()
    page.fill("#search", "3.DOWN")
    visible = [s for s in page.locator(".section").all() if s.is_visible()]
    assert 0 < len(visible) < total
    assert all("3.down" in s.text_content().lower() and is_open(s) for s in visible)
    assert page.locator(".box.hit").count() > 0
    assert page.text_content("#found") == f"{len(visible)} of {total}"
    page.fill("#search", "")
    assert all(s.is_visible() for s in page.locator(".section").all())
    assert page.locator(".box.hit").count() == 0
    page.fill("#search", "no such layer")
    assert not any(s.is_visible() for s in page.locator(".section").all())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_and_a_click(show, scheme):
    net, rules, _ = blocks(2)
    page = show(fxtie.plan(net, rules), color_scheme=scheme)

    def brightness():
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    first = brightness()
    assert (first > 600) == (scheme == "light")
    page.click("#theme")
    second = brightness()
    assert (second > 600) != (scheme == "light")
    page.click("#theme")
    assert brightness() == first


def test_links_lead_to_layers(show):
    net, _, tied = blocks(3)
    page = show(fxtie.diff(net, tied))
    page.click("#fold")
    page.click("#unfold")
    page.locator("a", has_text="to 2.down").first.click()
    assert page.evaluate("decodeURIComponent(location.hash)").startswith("#layer::2.down")
    page.click("#fold")
    page.evaluate("dispatchEvent(new HashChangeEvent('hashchange'))")
    assert is_open(page.locator('[id="layer::2.down"]'))


def test_boxes_tell_more_when_pointed_at(show):
    net, _, tied = blocks(2)
    page = show(fxtie.diff(net, tied, torch.randn(5, 8)))
    tips = page.locator(".box.derived title").all_text_contents()
    assert any("shape: (16, 8)" in tip and "dtype: float32" in tip for tip in tips)
    removed = page.locator(".box.removed title").all_text_contents()
    assert any("parameters: 144" in tip and "test_browser.py" in tip for tip in removed)


def test_names_of_a_model_do_nothing(show):
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    net = nn.Sequential()
    net.add_module("first", nn.Linear(4, 4))
    net.add_module(evil.replace(".", ""), nn.Linear(4, 4))
    rules = fxtie.Tie(f"{evil}.weight", "first.weight", torch.neg)
    tied = fxtie.transform(net, rules)
    for thing in (fxtie.plan(net, rules), fxtie.report(tied), fxtie.diff(net, tied)):
        page = show(thing)
        assert evil in page.content() or "onerror=alert(1)" in page.inner_text("body")
        assert page.locator("img").count() == 0


def test_a_thousand_nodes(show):
    """Each has a box: all of the graph after, and of the one before those of changed layers."""
    net, _, tied = blocks(130)
    diff = fxtie.diff(net, tied)
    (region,) = diff.regions
    assert len(region.before) + len(region.after) > 1000
    changed = {layer.name for layer in diff.layers}
    drawn = len(region.after) + sum(node.layer in changed for node in region.before)
    derived = sum(bool(node.tie) for node in region.after)
    page = show(diff)  # which sees to it that no script complains
    assert page.text_content("header .summary") == diff.summary()
    assert page.locator(".section .box:not(.stub)").count() == drawn
    assert page.locator(".section .box.derived").count() == derived > 0
    page.click("#unfold")
    heights = "all => all.map(one => one.getBoundingClientRect().height)"
    assert all(page.locator(".section .box").evaluate_all(heights)), "a box that can't be seen"


def test_a_click_on_a_block_unfolds_the_picture(show):
    net, rules, _ = blocks(16)
    page = show(fxtie.plan(net, rules))
    folded, whole = page.locator(".view").all()
    assert folded.is_visible() and not whole.is_visible()
    assert folded.locator(".layer").count() == 4 and whole.locator(".layer").count() == 32
    folded.locator(".block", has_text="×15").last.click()
    assert whole.is_visible() and not folded.is_visible()
    whole.locator(".layer rect").last.click()
    assert folded.is_visible() and not whole.is_visible()


def test_blocks_unfold_one_by_one(show):
    """Two rows of blocks, each with a row of layers inside."""

    def stage(width):
        return nn.Sequential(*(two_linears(width) for _ in range(8)))

    def two_linears(width):
        return nn.ModuleDict({f"fc_{i}": nn.Linear(width, width) for i in (1, 2)})

    net = nn.ModuleDict({"a": stage(2), "b": stage(3)})
    page = show(fxtie.plan(net, fxtie.Rule("*.*.fc_2", "{0}.{1}.fc_1")))

    def layers():
        return page.locator(".view:visible .layer").count()

    def click(name):
        page.locator(".view:visible .block", has_text=name).last.click()

    assert layers() == 4
    click("a.0…7")
    assert layers() == 18
    click("b.0…7")
    assert layers() == 32
    page.locator(".view:visible .layer rect").first.click()
    assert layers() == 18, "the first is folded again"


def test_what_is_not_folded_has_one_picture(show):
    net, rules, _ = blocks(3)
    page = show(fxtie.plan(net, rules))
    assert page.locator(".view").count() == 1
    page.locator(".layer").first.click()
    assert page.locator(".view").is_visible()


def test_a_layer_that_is_pointed_at_shows_its_arcs_alone(show):
    net, rules, _ = blocks(3)
    page = show(fxtie.plan(net, rules))
    page.locator(".layer").nth(2).hover()
    shown = "all => all.filter(e => getComputedStyle(e).opacity === '1').map(e => e.dataset.head)"
    assert page.locator(".tie").evaluate_all(shown) == ["2", "2"]
    page.mouse.move(2, 2)
    assert len(page.locator(".tie").evaluate_all(shown)) == page.locator(".tie").count() == 6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_has_the_colours_of_the_page(show, scheme):
    net, rules, _ = blocks(2)
    page = show(fxtie.plan(net, rules), color_scheme=scheme)
    fill = "getComputedStyle(document.querySelector('.stored')).fill"
    assert page.evaluate(fill.replace("stored", "ground")) == "none"
    for light in (scheme == "light", scheme != "light"):
        assert page.evaluate(fill) == ("rgb(59, 70, 87)" if light else "rgb(169, 181, 198)")
        page.click("#theme")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_picture_in_a_file_follows_the_system(browser, tmp_path, scheme):
    net, rules, _ = blocks(2)
    fxtie.picture(fxtie.plan(net, rules)).svg(tmp_path / "ties.svg")
    page = browser.new_page(color_scheme=scheme)
    page.goto((tmp_path / "ties.svg").as_uri())
    fill = page.evaluate("getComputedStyle(document.querySelector('.ground')).fill")
    assert fill == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 21, 28)"}[scheme]
    page.close()


def test_texts_of_the_picture_do_not_leave_it(show):
    """Sizes of characters are taken for granted: no text may be wider than it is said to be."""
    net, rules, _ = blocks(16)
    page = show(fxtie.plan(net, rules))
    outside = """svg => {
        const whole = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < whole.left || box.right > whole.right || box.bottom > whole.bottom;
        }).map(text => text.textContent);
    }"""
    assert page.locator("svg.ties").first.evaluate(outside) == []
