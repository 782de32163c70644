"""Measuring: a denoiser's error at each noise level, and how its pictures compare with real ones."""

from diffusion_utils.evaluation.errors import (
    covariance_eigenvalues,
    error_per_timestep,
    linear_bottleneck_error,
    reach,
    reconstruction_quality,
)
from diffusion_utils.evaluation.reference import Reference
