"""Colours on light and on dark ground."""

import re
import xml.etree.ElementTree as ET

import pytest
from drawn_ties import SVG, linears

import fxtie
from fxtie import Rule


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_themes(theme, tmp_path):
    fxtie.picture(fxtie.plan(linears(2), Rule("1", "0"))).svg(tmp_path / "a.svg", theme=theme)
    (style,) = ET.parse(tmp_path / "a.svg").getroot().iter(f"{SVG}style")
    grounds = re.findall(r"\.ground \{ fill: (#\w+);", style.text)
    assert grounds == {"light": ["#ffffff"], "dark": ["#11151c"]}.get(theme, ["#ffffff", "#11151c"])
    assert ("prefers-color-scheme: dark" in style.text) == (theme == "auto")
    assert "$" not in style.text, "a colour that has no value"
