"""wmfast: the fast discrete-token world-model engine for Atari, and its parts."""

__version__ = "0.1.0"
