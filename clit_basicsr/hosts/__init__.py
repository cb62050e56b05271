"""How the package enters its hosts, and fixes for the hosts' defects; the hosts' own files stay as they are.

To add a host: one folder here, and what has to happen around its import in ``import_hooks``.
"""
