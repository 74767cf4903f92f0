"""W2SVD core: distils a video diffusion model into four steps with one frozen copy and two small adapters."""

__version__ = "0.1.0"
