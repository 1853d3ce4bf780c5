"""wmfast: the fast discrete-token world-model engine for Atari, and its parts.

``TokenReplay`` needs numpy alone; importing this package does not import torch.
"""

from wmfast._core import TokenReplay

__version__ = "0.1.0"

__all__ = ["TokenReplay"]
