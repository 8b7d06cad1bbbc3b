"""``python -m docs.notebooks``: the tutorials of the documentation as notebooks, into ``examples/notebooks``."""

import json
from pathlib import Path

from sphinx_gallery import gen_gallery
from sphinx_gallery.notebook import jupyter_notebook
from sphinx_gallery.py_source_parser import split_code_and_text_blocks

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "notebooks"
FIRST = "%pip install --quiet mmgl-losses matplotlib"


def make() -> dict[str, str]:
    """File name -> content of each notebook."""
    made = {}
    for source in sorted((ROOT / "docs" / "lessons").glob("plot_*.py")):
        _, found = split_code_and_text_blocks(str(source))
        settings = gen_gallery.DEFAULT_GALLERY_CONF | {"first_notebook_cell": FIRST}
        notebook = jupyter_notebook(found, settings, str(source.parent))
        notebook["metadata"] = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
        }
        made[f"{source.stem.split('_', 2)[2]}.ipynb"] = json.dumps(notebook, indent=1) + "\n"
    return made


if __name__ == "__main__":
    for name, content in make().items():
        (FOLDER / name).write_text(content)
