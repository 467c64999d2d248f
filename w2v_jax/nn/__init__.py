"""Linen modules: layers, encoders, quantizers, acoustic models."""
