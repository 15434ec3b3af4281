"""Flows: arrows lead down, boxes do not overlap, and a long flow takes no long time."""

import itertools
import random
import re

import pytest

from fxtie.looking.layout import Box, Flow, draw


def flow(arrows):
    keys = dict.fromkeys(itertools.chain(*arrows))
    return Flow(tuple(Box(str(k), (f"box {k}", "text")) for k in keys), tuple(arrows))


def random_flow(seed, n=30):
    chance = random.Random(seed)
    arrows = [(str(a), str(b)) for a in range(n) for b in range(a + 1, n) if chance.random() < 0.08]
    return flow(arrows)


@pytest.mark.parametrize("seed", range(8))
def test_arrows_lead_down_and_boxes_stand_apart(seed):
    found = draw(random_flow(seed))
    place = {box.key: (x, y) for box, x, y in found.boxes}
    for tail, head in random_flow(seed).arrows:
        assert place[tail][1] < place[head][1]
    for (a, ax, ay), (b, bx, by) in itertools.combinations(found.boxes, 2):
        wide, high = ((a.size[i] + b.size[i]) / 2 for i in (0, 1))
        assert abs(ax - bx) >= wide - 1e-6 or abs(ay - by) >= high - 1e-6
    for box, x, y in found.boxes:
        assert box.size[0] / 2 <= x <= found.size[0] - box.size[0] / 2
        assert box.size[1] / 2 <= y <= found.size[1] - box.size[1] / 2


def test_a_chain_is_straight_and_what_reads_nothing_is_close():
    found = draw(flow([("a", "b"), ("b", "c"), ("weight", "c")]))
    place = {box.key: (x, y) for box, x, y in found.boxes}
    assert place["a"][0] == pytest.approx(place["b"][0])
    assert place["weight"][1] == place["b"][1]


def test_arrows_of_one_box_share_their_bends():
    readers = [f"r{i}" for i in range(6)]
    chain = [*itertools.pairwise(["a", *readers])]
    found = draw(flow([*chain, *(("a", reader) for reader in readers[1:])]))
    through = [path for path in found.paths if path.count("M") == 1]
    assert len(through) == 5, "one in each rank that they pass"


@pytest.mark.parametrize("seed", range(8))
def test_arrows_lead_from_box_to_box(seed):
    found = draw(random_flow(seed))
    parts = {}
    for path in found.paths:
        numbers = [tuple(map(float, pair)) for pair in re.findall(r"([-\d.]+),([-\d.]+)", path)]
        (_, start), (_, curved) = numbers[0], numbers[3]
        assert not [y for _, _, y in found.boxes if start < y < curved], "it bends in each rank"
        end = numbers[3] if path.count("M") == 2 else numbers[4]
        parts.setdefault(numbers[0], []).append(end)
    ends = {}
    for box, x, y in found.boxes:
        half = box.size[1] / 2
        ends[box.key] = [tuple(float(f"{n:.1f}") for n in (x, y + sign * half)) for sign in (1, -1)]

    def reached(place):
        return {place}.union(*map(reached, parts.get(place, ())))

    for tail, head in random_flow(seed).arrows:
        assert ends[head][1] in reached(ends[tail][0])


def test_every_arrow_has_its_head():
    arrows = random_flow(3).arrows
    heads = [re.search(r"M\S+ L(\S+) L\S+$", path) for path in draw(random_flow(3)).paths]
    assert len([*filter(None, heads)]) == len(arrows)


def test_nothing_to_draw():
    assert draw(Flow(())).boxes == []
    alone = draw(Flow((Box("a", ("a",)),)))
    assert len(alone.boxes) == 1 and not alone.paths
