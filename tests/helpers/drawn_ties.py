"""Pictures of ties as SVG, and what stands in them."""

import xml.etree.ElementTree as ET

from torch import nn

import fxtie

SVG = "{http://www.w3.org/2000/svg}"


def drawn(model, *rules):
    return ET.fromstring(fxtie.picture(fxtie.plan(model, rules))._repr_svg_())


def linears(n):
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(n)))


def with_class(root, name):
    return [e for e in root.iter() if name in e.get("class", "").split()]


def texts(root):
    return ["".join(e.itertext()) for e in root.iter(f"{SVG}text")]
