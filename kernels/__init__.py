"""Kernels behind one door: exact nearest codes, sums by code, and attention with FiLM queries."""

from wmfast.kernels.code_sums import code_sums, code_sums_reference
from wmfast.kernels.film_attention import film_attention, film_attention_reference
from wmfast.kernels.nearest_code import nearest_code, nearest_code_reference

__all__ = [
    "code_sums",
    "code_sums_reference",
    "film_attention",
    "film_attention_reference",
    "nearest_code",
    "nearest_code_reference",
]
