"""What is shown of plans, tied models and diffs. Importing this registers it (`shown.py`).

* `diff.py`: `matching.py` pairs the nodes of two graphs, `nodes.py` and `shapes.py` describe each,
  `diff_layers.py` says what changed.
* `suggest.py`: `candidates.py` and `schemes.py` find layers, `spelling.py` writes the rules.
* `picture.py`: the tie picture, drawn in `picturing/`.
* Text: `texts.py`, `diff_text.py`, `tables.py`. Pages: `tie_page.py`, `diff_page.py`, `page.py`.
"""

from fxtie.looking import diff_page, diff_text, texts, tie_page

__all__ = ["diff_page", "diff_text", "texts", "tie_page"]
