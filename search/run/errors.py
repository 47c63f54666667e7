"""Why a run ends early."""

import contextlib
from collections.abc import Iterator


class UsageError(Exception):
    """Bad input; the message is for the user, and the exit code is 2."""


class SearchFailed(Exception):
    """No candidate can be evaluated, or no finalist can be trained."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn the ValueError of a check of the user's input into a UsageError; elsewhere a ValueError is a bug."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from None
