"""Sphinx: Markdown pages and the docstrings."""

import re

import mmgl_losses

project = "mmgl-losses"
author = "The mmgl-losses authors"
release = version = mmgl_losses.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"mmgl-losses {release}"
exclude_patterns = ["_build"]
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
napoleon_custom_sections = [("Shape", "params_style")]
nitpick_ignore_regex = [("py:.*", r".*")]


def _escape_stars(app, what, name, obj, options, lines):
    """Shapes are written (B, *spatial); the star must not start emphasis."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            parts = re.split(r"(``.*?``|`.*?`)", line)
            parts[::2] = [re.sub(r"(?<![*\\])\*(?=[a-z])", r"\\*", part) for part in parts[::2]]
            lines[i] = "".join(parts)


def setup(app):
    """Runs before napoleon, which reads the sections."""
    app.connect("autodoc-process-docstring", _escape_stars, priority=100)
