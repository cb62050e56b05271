"""From a picture file to a larger one, or to an animation: reading and writing, tiles, memory, progress; and figures.

To add a figure: a file here that computes and draws it, and a command in ``cli``.
"""
