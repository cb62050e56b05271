"""Where pixels are and how maps are read: each formula once.

To add a formula: a function on tensors in the file of its subject (``coords``, ``sampling``, ``axes``, ``ensemble``,
``mirror``, ``resize``), with a test against the reference or a golden file.
"""
