"""Data sets, the schedule of scales, and pairs of HR and LR images.

To add a data set: ``<name>_dataset.py`` here, found by its suffix, with a class registered in the host's
DATASET_REGISTRY whose ``OPTIONS`` says which options it takes.
"""
