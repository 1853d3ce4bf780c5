"""Kernels behind one door."""
