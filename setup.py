from pathlib import Path

from setuptools import setup


EXAMPLES = ["evaluate", "matplotlib", "scikit-learn", "scipy", "seqeval"]

setup(
    name="autobert-zero",
    version="0.1.0",
    description="Evolve BERT backbones from primitive operations (OP-NAS with bi-branch weight sharing)",
    # Without the front matter, which is the Hub's.
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8").split("---\n", 2)[2].lstrip(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The repository root is the package: the two modules beside this file are also the code that
    # travels with a saved model. There is deliberately no __init__.py here (see CONTRIBUTING.md).
    package_dir={"autobert_zero": ".", "autobert_zero.search": "search"},
    packages=["autobert_zero", "autobert_zero.search"],
    package_data={"autobert_zero.search": ["templates/*"]},
    install_requires=[
        "accelerate>=1.10",
        "datasets>=4.0",
        "filelock",
        "huggingface_hub>=1.0",
        "jinja2",
        "numpy>=2.0",
        "pyyaml",
        "safetensors>=0.6",
        "tokenizers>=0.22",
        "torch>=2.8",
        "tqdm",
        "transformers>=5.4,<6",
    ],
    extras_require={
        "examples": EXAMPLES,
        "completion": ["shtab"],
        "docs": ["pdoc"],
        "glue": ["scikit-learn", "scipy"],
        "test": [
            *EXAMPLES,
            "ipykernel",
            "mypy",
            "nbclient",
            "nbformat",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "parameterized",
            "pdoc",
            "peft",
            "playwright",
            "psutil",
            "pytest",
            "pytest-xdist",
            "ruff",
            "setuptools",
            "shtab",
            "tensorboard",
            "wheel",
        ],
    },
    entry_points={"console_scripts": ["autobert-zero=autobert_zero.search.commands:main"]},
)
