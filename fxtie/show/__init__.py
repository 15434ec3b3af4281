"""How plans, reports and diffs look: as text."""
