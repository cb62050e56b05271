"""Making LMDBs, sub-images and LR images: what ``basicsr prepare`` does.

``sources`` finds the images, ``recipe`` says what becomes of each, ``outputs`` writes it under a temporary name,
``run`` does the work in several processes, and ``inspection`` describes and verifies what is there.
"""
