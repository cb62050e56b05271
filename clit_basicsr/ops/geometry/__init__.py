"""Where pixels are, and how maps are read there."""
