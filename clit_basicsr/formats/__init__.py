"""Picture files: one reader for the data sets and the picture commands.

Every format is decoded by a path that reports damage as an exception and writes nothing to the terminal.
"""
