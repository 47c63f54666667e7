"""Fetches the source distribution of the installed transformers, whose common tests run on any model class.

    python -m tests.conformance.fetch

puts it into `.cache/`, importable as `transformers_tests`. It is not part of this project.
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

# Modules that the common tests import and the distribution lacks; none of them concerns an encoder.
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
        # Under another name: `tests` is this package.
        tests = (source / "tests").rename(source / "transformers_tests")
        for name, text in STAND_INS.items():
            path = tests / name
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
        shutil.move(source, SOURCE)


if __name__ == "__main__":
    fetch()
