"""What enters MMagic's registries, and when: each registry is filled by one package of the host, and ours follow it."""

from __future__ import annotations

from importlib import import_module

FILES = {
    'mmagic.models': ('networks', 'averaging', 'implicit_sr', 'checkpoints'),
    'mmagic.datasets': ('sampler', 'datasets'),
    'mmagic.evaluation': ('metrics',),
    'mmagic.engine': ('checkpoints', 'train_loop'),
}


def register(part: str) -> None:
    """Imports the files whose classes stand in the registries that a package of MMagic, now imported, fills."""
    for name in FILES[part]:
        import_module(f'clit_basicsr.hosts.mmagic.{name}')


def register_all() -> None:
    """The same for all of them; imports what has not been imported of MMagic."""
    for part in FILES:
        import_module(part)
        register(part)
