"""Fetches the source distribution of the installed transformers, whose tests are made to run on any model class.

    python -m tests.conformance.fetch

puts it into `.cache/`, ready to import as `transformers_tests`. Nothing of it is part of this project.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


CACHE = Path(__file__).resolve().parents[2] / ".cache"
SOURCE = CACHE / f"transformers-{transformers.__version__}"

# What the common tests import and the distribution lacks: nothing of it concerns an encoder.
STAND_INS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def fetch() -> None:
    if SOURCE.exists():
        return
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run(
            [*download, "--no-build-isolation", "--dest", folder, f"transformers=={transformers.__version__}"],
            check=True,
        )
        [archive] = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        source = Path(folder) / SOURCE.name
        # Under a name of its own: `tests` is ours.
        tests = (source / "tests").rename(source / "transformers_tests")
        for name, text in STAND_INS.items():
            path = tests / name
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
        shutil.move(source, SOURCE)


if __name__ == "__main__":
    fetch()
