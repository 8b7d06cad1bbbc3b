"""Imports the package first: pytest, given a folder inside of it, would import that folder a second time."""

from importlib.util import find_spec

import mmgl_losses  # noqa: F401

# Modules of the package that need a library which an extra brings, and their folder's doctests with them.
EXTRAS = {"lightning": "mmgl_losses/lightning.py", "triton": "mmgl_losses/contrast/fused"}
collect_ignore = [path for library, path in EXTRAS.items() if find_spec(library) is None]
