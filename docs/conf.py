"""Sphinx: Markdown pages and the docstrings."""

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
