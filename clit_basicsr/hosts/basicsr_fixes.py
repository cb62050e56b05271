"""Fixes of BasicSR's defects, applied once it is imported."""


def apply() -> None:
    """Apply every fix; a second call does nothing."""
