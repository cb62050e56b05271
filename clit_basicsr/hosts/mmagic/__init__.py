"""How the package enters MMagic: its registries know our classes, on mmengine's Runner; nothing is computed twice."""
