"""Fetch Stanford Cars."""

from diffusion_utils.data import stanford_cars


def download() -> None:
    """Fetch Stanford Cars from Kaggle (1.9 GB, no login), and print where it is."""
    print(f"export {stanford_cars.ROOT_VARIABLE}={stanford_cars.download()}")
