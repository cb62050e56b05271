"""Local attention: ``reference`` is the definition to read first; ``local`` answers any queries, ``dense`` whole
pictures from ``rows`` made on demand, ``windows`` few queries on upsampled features.

To add a faster path: one file here that calls the operators of :mod:`clit_basicsr.ops.operators`, and a test against
``reference``, values and gradients.
"""
