"""The variables of a Python module, as something that can be pickled.

In: the variables and the module's name. Out: what is found by that name when it is unpickled.
"""

from __future__ import annotations

import sys
from typing import Any


class Namespace:
    """The variables of a Python module, found by the module's name when it is unpickled."""

    def __init__(self, variables: dict[str, Any], name: str) -> None:
        self.variables, self.name = variables, name

    def __reduce__(self) -> Any:
        return _namespace, (self.name,)


def _namespace(name: str) -> Namespace:
    module = sys.modules.get(name)  # without it no fact holds, and the forward runs as written
    return Namespace({} if module is None else vars(module), name)
