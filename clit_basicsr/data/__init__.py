"""Data sets, the schedule of scales, and how LR images are made."""
