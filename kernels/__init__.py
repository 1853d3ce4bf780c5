"""Kernels behind one door: exact nearest codes and attention with FiLM queries."""

from wmfast.kernels.nearest_code import nearest_code, nearest_code_reference

__all__ = ["nearest_code", "nearest_code_reference"]
