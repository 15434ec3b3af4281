"""Files of pictures, and what notebooks get."""

import html
import sys

import pytest
import torch
from tied_forms import FORMS
from torch import nn

import fxtie
from fxtie import Rule


def picture():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    return fxtie.picture(fxtie.plan(net, Rule("1", "0", torch.square)))


def test_text_and_repr():
    found = picture()
    assert str(found) == "2 ties, parameters 40 -> 20 (50.0%)"
    assert repr(found) == f"<TiePicture: {found}>"


def test_notebooks_get_svg_and_a_page():
    assert picture()._repr_svg_().startswith("<svg ")
    assert picture()._repr_html_().startswith("<iframe ")


def test_parts_of_a_tied_model_have_no_picture():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    tied = fxtie.transform(net, Rule("1.0", "0"))
    assert tied._repr_html_().startswith("<iframe ")
    assert tied[1][0]._repr_html_() is None


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_every_tied_model_is_its_picture_in_a_notebook(form, trace):
    net, rules, _ = FORMS[form]()
    tied = fxtie.transform(net, rules, trace=trace)
    frame = html.unescape(tied._repr_html_())
    assert fxtie.picture(tied).summary() in html.unescape(frame)


def test_a_model_that_shows_itself_goes_on_doing_so():
    class Shown(nn.Sequential):
        def _repr_html_(self):
            return f"<b>{len(self)}</b>"

    net = Shown(nn.Linear(4, 4), nn.Linear(4, 4))
    assert fxtie.transform(net, Rule("1", "0"))._repr_html_() == "<b>2</b>"


def test_png(tmp_path):
    pytest.importorskip("resvg_py")
    image = pytest.importorskip("PIL.Image")
    for theme, ground in (("light", (255, 255, 255)), ("dark", (17, 21, 28))):
        picture().png(tmp_path / "a.png", theme=theme, scale=1)
        with image.open(tmp_path / "a.png") as found:
            assert found.convert("RGB").getpixel((found.width // 2, 3)) == ground
            size = found.size
    picture().png(tmp_path / "b.png", scale=2)
    with image.open(tmp_path / "b.png") as found:
        assert found.size == pytest.approx((2 * size[0], 2 * size[1]), abs=2)


def test_what_png_needs_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(fxtie.FxtieError, match=r"pip install 'fxtie\[viz\]'"):
        picture().png(tmp_path / "a.png")
    assert not [*tmp_path.iterdir()]


def test_other_themes_are_refused(tmp_path):
    with pytest.raises(fxtie.FxtieError, match="not 'blue'"):
        picture().svg(tmp_path / "a.svg", theme="blue")
    with pytest.raises(fxtie.FxtieError, match="one theme"):
        picture().png(tmp_path / "a.png", theme="auto")
