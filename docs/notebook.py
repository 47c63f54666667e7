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


def notebook() -> str:
    """The tutorial as a notebook without outputs, in JSON. The blocks of Python and bash are its cells of code."""
    text = _HEADER + (DOCS / "tutorial.md").read_text(encoding="utf-8")
    made = jupytext.reads(text, "md")
    del made.metadata["jupytext"]
    for number, cell in enumerate(made.cells):
        cell["id"] = f"cell-{number}"  # otherwise a random one
    return nbformat.writes(made) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
