"""Independent random streams, each identified by its name."""

import zlib

import numpy as np


def random_stream(seed: int, *names: str | int) -> np.random.Generator:
    """A generator that depends on the seed and the names only: `random_stream(seed, "proposal", generation, child)`."""
    key = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
