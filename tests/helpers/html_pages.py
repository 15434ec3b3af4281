"""Pages of a small model, written and read again."""

from html.parser import HTMLParser

import torch
from torch import nn

import fxtie


def small():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    rules = [fxtie.Rule("2", "0", weight=torch.square), fxtie.Rule("4", "0", bias=None)]
    return net, rules


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def written(thing, tmp_path):
    path = tmp_path / "page.html"
    thing.html(path)
    return path.read_text(encoding="utf-8")


def pages(net, rules):
    tied = fxtie.transform(net, rules)
    return [fxtie.plan(net, rules), fxtie.report(tied), fxtie.diff(net, tied)]
