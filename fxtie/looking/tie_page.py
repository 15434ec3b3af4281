"""Plans and reports -> what their pages say.

In: a `Plan` or a `Report`. Out: a `Page`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxtie.capturing.report import Report
from fxtie.looking.grouping import grouped
from fxtie.looking.layout import Arrow, Box, Picture
from fxtie.looking.page import Page, Section, Table
from fxtie.planning.plan import Plan
from fxtie.planning.steps import Step
from fxtie.shown import page
from fxtie.words import count, human_bytes, list_names, role


@page.register
def plan_page(plan: Plan) -> Page:
    """What the page of a plan says: which layer feeds which, and each tie."""
    headers, rows = plan.table()
    ties = Section("ties", count(len(plan.steps), "tensor"), table=Table(headers, rows))
    picture = tie_picture(plan)
    feeds = Section("which layer feeds which", pictures=[("", picture)])
    return Page(
        "fxtie: plan", plan.summary(), sections=[feeds, ties], legend=[("derived", "transform")]
    )


@page.register
def report_page(report: Report) -> Page:
    """What the page of a report says: its table, and the picture of its plan."""
    of_plan = plan_page(report.plan)
    headers, rows = report.table()
    table = Section("modules", count(len(rows), "row"), table=Table(headers, rows))
    facts = [("parameters saved", human_bytes(report.bytes_saved))]
    return Page(
        "fxtie: report", report.summary(), facts, [table, *of_plan.sections], legend=of_plan.legend
    )


def tie_picture(plan: Plan) -> Picture:
    """Sources, transforms, targets. Targets that are tied alike are one box."""
    made_by = grouped(plan.steps, lambda step: _owner(step.tie.target))
    groups = [*grouped(made_by, lambda o: (role(o), *sorted(map(_how, made_by[o])))).values()]
    box_of = {owner: f"layers {i}" for i, owners in enumerate(groups) for owner in owners}
    boxes: dict[str, Box] = {}
    arrows: dict[tuple[str, str], Arrow] = {}

    def layer(owner: str) -> str:
        key = box_of.get(owner, f"layer {owner}")
        if key not in boxes:
            boxes[key] = Box(key, (owner or "(root)",), "", owner)
        return key

    for i, owners in enumerate(groups):
        key = f"layers {i}"
        names = list_names(owners) if owners != [""] else "(root)"
        lines = (names,) if len(owners) == 1 else (names, count(len(owners), "layer"))
        boxes[key] = Box(key, lines, "", "\n".join(owners))
        for step in made_by[owners[0]]:
            transform = f"transform {i} {_how(step)}"
            text = f"{step.tie.target.rpartition('.')[2]}: {step.transform_name}"
            boxes[transform] = Box(transform, (text,), "derived", _tip(step))
            arrows[transform, key] = Arrow(transform, key, "tie")
            for source in step.tie.sources:
                tail = layer(_owner(source))
                arrows.setdefault((tail, transform), Arrow(tail, transform, "tie"))
    return Picture(tuple(boxes.values()), tuple(arrows.values()), across=True)


def _how(step: Step) -> str:
    """How a tensor is derived, the same for those that are derived alike."""
    attr = step.tie.target.rpartition(".")[2]
    return f"{attr} {step.transform_name} {_names(step.tie.sources)} {step.spec.shape}"


def _tip(step: Step) -> str:
    shape = "x".join(map(str, step.spec.shape))
    sources = _names(step.tie.sources) or "nothing"
    dtype = str(step.spec.dtype).removeprefix("torch.")
    return f"{step.transform_name}\nfrom: {sources}\nshape: {shape}\ndtype: {dtype}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]
