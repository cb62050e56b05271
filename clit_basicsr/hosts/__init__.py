"""Everything that knows of a host's defects or differences."""
