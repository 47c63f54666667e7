"""The documentation as a site: `make docs`. The pages are the Markdown files that are read in the repository, too."""

import importlib.metadata


project = "AutoBERT-Zero"
author = "The AutoBERT-Zero authors"
release = importlib.metadata.version("autobert-zero")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
# The source folder is the root of the repository, so that links between its files hold.
root_doc = "README"
PAGES = [
    "docs/tutorial",
    "docs/how-to",
    "docs/explanation",
    "examples/README",
    "results/README",
    "results/LOG",
    "docs/reference",
]
OTHERS = ["docs/README", "CHANGELOG", "CONTRIBUTING", "SECURITY", "tests/conformance/README"]
include_patterns = [*(f"{page}.*" for page in (root_doc, *PAGES, *OTHERS)), "docs/reference/**"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}

highlight_language = "none"  # of blocks without a language: commands and output
html_theme = "furo"
html_title = "AutoBERT-Zero"
html_copy_source = False

myst_heading_anchors = 4
myst_enable_extensions = ["strikethrough"]

napoleon_use_ivar = True
autosummary_generate = True
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}


def add_contents(app, name, source):
    """The table of contents, on the first page."""
    if name == root_doc:
        for pages in (PAGES, OTHERS):
            source[0] += "\n```{toctree}\n:hidden:\n" + "\n".join(f"/{page}" for page in pages) + "\n```\n"


def setup(app):
    app.connect("source-read", add_contents)
