"""What is shown of plans, reports and diffs: text and pages.

Importing this registers how each is shown (see `fxtie/shown.py`).
"""

from fxtie.looking import diff_page, diff_text, plan_text, result_text, suggestions_text, tie_page

__all__ = ["diff_page", "diff_text", "plan_text", "result_text", "suggestions_text", "tie_page"]
