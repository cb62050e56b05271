"""Fixes for defects of BasicSR 1.4.2, each with its reason."""
