"""Imports the package first: pytest, given a folder inside of it, would import that folder a second time."""

import mmgl_losses  # noqa: F401
