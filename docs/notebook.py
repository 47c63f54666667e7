"""Write tutorial.ipynb, which is tutorial.md as a notebook: `make docs`."""

from pathlib import Path

import jupytext
import nbformat


DOCS = Path(__file__).resolve().parent
NOTEBOOK = DOCS / "tutorial.ipynb"
# The tutorial has more commands than Python; without this, the language of the notebook would be bash.
_HEADER = """---
jupyter:
  kernelspec:
    display_name: Python 3
    language: python
    name: python3
---
"""


# Jupyter starts in the folder of the notebook.
_TO_THE_ROOT = """import os
from pathlib import Path

if Path.cwd().name == "docs":
    os.chdir("..")"""


def notebook() -> str:
    """The tutorial as a notebook without outputs, in JSON. The blocks of Python and bash are its cells of code."""
    text = _HEADER + (DOCS / "tutorial.md").read_text(encoding="utf-8")
    made = jupytext.reads(text, "md")
    del made.metadata["jupytext"]
    made.cells.insert(1, nbformat.v4.new_code_cell(_TO_THE_ROOT))
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"  # otherwise a random one
    return nbformat.writes(made) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
