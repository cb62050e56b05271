"""The papers' metrics, on float tensors."""

from clit_basicsr.metrics.psnr_ssim_float import calculate_psnr_float, calculate_ssim_float

__all__ = ['calculate_psnr_float', 'calculate_ssim_float']
