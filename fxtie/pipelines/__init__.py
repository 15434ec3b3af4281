"""In torch's pipelines: passes, exported programs, constants.

Importing this lets `fxtie.transform` take exported programs (see `exported.py`).
"""

from fxtie.pipelines import exported

__all__ = ["exported"]
