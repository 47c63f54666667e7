"""Output on terminals and pipes that are not UTF-8."""

import codecs
import sys


_ASCII = {"±": "+/-", "×": "x", "−": "-", "→": "->", "·": "*", "σ": "sigma", "…": "..."}


def _transliterate(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_ASCII.get(c, "?") for c in error.object[error.start : error.end]), error.end


def degrade_output() -> None:
    """Let standard output and error replace what their encoding lacks by ASCII, instead of raising an error."""
    codecs.register_error("transliterate", _transliterate)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="transliterate")
