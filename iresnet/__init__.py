"""Invertible residual networks."""
