"""Plans, reports, tied models and pictures of them -> their `Page`s, the picture first."""

from __future__ import annotations

from fxtie.capturing.report import Report
from fxtie.looking.page import Page, Section
from fxtie.looking.picture import TiePicture, picture
from fxtie.looking.tables import Table
from fxtie.looking.texts import ties_table
from fxtie.planning.plan import Plan
from fxtie.shown import page
from fxtie.tied.tied_module import TiedModule
from fxtie.words import count, human_bytes


@page.register
def plan_page(plan: Plan) -> Page:
    """What the page of a plan says: the picture, and each tie."""
    return Page("fxtie: plan", plan.summary(), (), picture(plan).scene, [_ties(plan)])


@page.register
def report_page(report: Report) -> Page:
    """What the page of a report says: the picture, what became of each module, and each tie."""
    headers, rows = report.table()
    modules = Section("modules", count(len(rows), "row"), table=Table(headers, rows))
    facts = [("parameters saved", human_bytes(report.bytes_saved))]
    sections = [modules, _ties(report.whole_plan)]
    return Page("fxtie: report", report.summary(), facts, picture(report).scene, sections)


@page.register
def picture_page(shown: TiePicture) -> Page:
    """The picture alone."""
    return Page("fxtie: ties", shown.summary(), scene=shown.scene)


@page.register
def tied_page(tied: TiedModule) -> Page:
    """The picture of a tied model."""
    return picture_page(picture(tied))


def _ties(plan: Plan) -> Section:
    return Section("ties", count(len(plan.steps), "tensor"), table=ties_table(plan))
