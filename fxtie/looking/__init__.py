"""Importing this registers how plans, reports, diffs and their like are shown (`shown.py`)."""

from fxtie.looking import diff_page, diff_text, texts, tie_page

__all__ = ["diff_page", "diff_text", "texts", "tie_page"]
