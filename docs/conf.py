"""Sphinx: Markdown pages, the docstrings, and pictures that are made while this builds."""

import re
import sys
import zlib
from pathlib import Path

import mmgl_losses

sys.path.insert(0, str(Path(__file__).parent))  # where `mathml` is

project = "mmgl-losses"
author = "the mmgl-losses developers"
REPOSITORY = "https://github.com/mmgl-losses/mmgl-losses"
copyright = author
release = version = mmgl_losses.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "mathml",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
exclude_patterns = [
    "_build",
    "gallery",
    "lessons",
    "results",
    "sg_execution_times.rst",
    "pictures/sg_execution_times.rst",
    "tutorials/sg_execution_times.rst",
]
default_role = "code"

html_theme = "furo"
html_title = f"mmgl-losses {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "light_css_variables": {
        "code-font-size": "var(--font-size--small--2)",
        "color-brand-primary": "#0b5c96",
        "color-brand-content": "#0b5c96",
    },
    "dark_css_variables": {"color-brand-primary": "#7cc4f4", "color-brand-content": "#7cc4f4"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
maximum_signature_line_length = 48  # as wide as a phone
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape"]
nitpick_ignore_regex = [("py:.*", r".*")]

sphinx_gallery_conf = {
    "examples_dirs": ["lessons", "gallery"],
    "gallery_dirs": ["tutorials", "pictures"],
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "abort_on_example_error": True,
    "copyfile_regex": r".*\.rst",
    "image_srcset": ["2x"],
}
suppress_warnings = ["config.cache"]

intersphinx_mapping = {"torch": ("https://docs.pytorch.org/docs/stable/", "torch.inv")}
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

_NAMES = {name: f"mmgl_losses.{name}" for name in (*mmgl_losses.__all__, "UNet")}
for module, names in {
    "functional": mmgl_losses.functional.__all__,
    "plugins": ("available", "create"),
    "testing": ("check_loss", "check_head", "check_formula", "ConformanceError"),
}.items():
    _NAMES |= {name: f"mmgl_losses.{module}.{name}" for name in names}
    _NAMES |= {f"{module}.{name}": f"mmgl_losses.{module}.{name}" for name in names}
_NAMES |= {"PairLogSumExp": "mmgl_losses.contrast.PairLogSumExp"}
for module in ("functional", "plugins"):  # no pages of their own
    del _NAMES[module]
_LINKS = {f"`{name}`": f":py:obj:`{name} <{full}>`" for name, full in _NAMES.items()}
_LINKS |= {"`mmgl_losses.distributed`": ":doc:`/gpus`"}


_TORCH = {
    "torch.Tensor": "tensors.html#torch.Tensor",
    "torch.dtype": "tensor_attributes.html#torch.dtype",
    "torch.nn.Module": "generated/torch.nn.Module.html#torch.nn.Module",
    "torch.nn.modules.module.Module": "generated/torch.nn.Module.html#torch.nn.Module",
}


def _write_inventory(app):
    """The names of torch that our pages use, as intersphinx reads them: so building needs no network."""
    rows = "".join(f"{name} py:class 1 {place} -\n" for name, place in _TORCH.items())
    head = "# Sphinx inventory version 2\n# Project: torch\n# Version: stable\n"
    head += "# The remainder of this file is compressed using zlib.\n"
    (Path(app.srcdir) / "torch.inv").write_bytes(head.encode() + zlib.compress(rows.encode()))


def _write_out(app, what, name, obj, options, lines):
    """Public names become links; the star of a shape (B, *spatial) and the bars of |P| stand for themselves."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith(">>>"):
            parts = re.split(r"(``.*?``|`.*?`)", line)
            parts[::2] = [
                re.sub(r"(?<![*\\])\*(?=[a-z])|(?<=[/ ])\|(?=P\|)", r"\\\g<0>", part)
                for part in parts[::2]
            ]
            parts[1::2] = [_LINKS.get(part, part) for part in parts[1::2]]
            lines[i] = "".join(parts)


def _lead_back(app, pagename, templatename, context, doctree):
    """Pages of sources link back to the name under which a thing is documented; viewcode guesses its module."""
    if not pagename.startswith("_modules/"):
        return
    known = app.env.domains["py"].objects

    def documented(link):
        page, name = link.groups()
        while name not in known and "." in name:
            _, _, name = name.partition(".")
            name = next((full for full in known if full.endswith(f".{name}")), name)
        return f'href="{page}#{name}"' if name in known else link[0]

    context["body"] = re.sub(
        r'href="([^"#]+)#(mmgl_losses[\w.]*)"', documented, context["body"]
    )


def setup(app):
    app.connect("html-page-context", _lead_back)
    app.connect("builder-inited", _write_inventory, priority=100)  # before intersphinx
    app.connect(
        "autodoc-process-docstring", _write_out, priority=100
    )  # before napoleon, which reads the sections
