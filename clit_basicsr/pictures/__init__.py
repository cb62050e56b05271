"""From a picture file to a bigger one, or to a film: reading and writing, tiles, memory, progress; and figures."""
