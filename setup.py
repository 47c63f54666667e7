from pathlib import Path

from setuptools import setup


# The repository root is the package: its two modules are also the code that is saved with every model. This file holds
# what pyproject.toml cannot express; there is deliberately no __init__.py in the root (see CONTRIBUTING.md).
PARTS = ("space", "evolution", "text", "evaluation", "report", "run", "cli")

setup(
    script_name="setup.py",  # which is left out of the package; build front ends run it under another name
    include_package_data=False,  # only what is listed here
    package_dir={"autobert_zero": ".", "autobert_zero.search": "search"},
    packages=["autobert_zero", "autobert_zero.search", *(f"autobert_zero.search.{part}" for part in PARTS)],
    package_data={
        "autobert_zero": ["py.typed"],
        "autobert_zero.search": ["py.typed"],
        "autobert_zero.search.report": ["templates/*"],
    },
    # Without the front matter, which is for the Hub.
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8").split("---\n", 2)[2].lstrip(),
    long_description_content_type="text/markdown",
)
