"""The papers' metrics, on float tensors.

To add a metric: a function registered in the host's METRIC_REGISTRY; ``takes_float_tensors = True`` on it if it
measures float images.
"""

from clit_basicsr.metrics.psnr_ssim_float import calculate_psnr_float, calculate_ssim_float

__all__ = ['calculate_psnr_float', 'calculate_ssim_float']
