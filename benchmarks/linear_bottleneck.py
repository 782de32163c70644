"""What the best linear denoiser could do through a bottleneck, exactly, on real car pictures.

    STANFORD_CARS_ROOT=… python benchmarks/linear_bottleneck.py

Writes the spectrum of the pictures' covariance (12,288 numbers: no picture can be made from it) to
benchmarks/results/stanford_cars_spectrum.safetensors, which notebook 03 reads, and prints the table.
"""

from pathlib import Path

from safetensors.torch import save_file

from diffusion_utils.data import stanford_cars
from diffusion_utils.evaluation import covariance_eigenvalues, linear_bottleneck_error
from diffusion_utils.files import write_atomically

RESULT = Path(__file__).parent / "results" / "stanford_cars_spectrum.safetensors"


def main() -> None:
    cars = stanford_cars.load(size=64)
    spectrum = covariance_eigenvalues(cars.images)
    about = {"pictures": str(len(cars.images)), "size": "64", "made_by": "benchmarks/linear_bottleneck.py"}
    write_atomically(RESULT, lambda path: save_file({"eigenvalues": spectrum.float()}, path, metadata=about))
    print(f"{len(cars.images)} pictures, variance {spectrum.sum() / len(spectrum):.4f} per number")
    print("sigma/alpha   rank   epsilon   v_prediction   sample")
    for ratio, rank in ((0.05, 2048), (0.2, 2048), (1, 2048), (1, 8192), (10, 2048)):
        errors = [
            linear_bottleneck_error(spectrum, ratio, rank, kind) for kind in ("epsilon", "v_prediction", "sample")
        ]
        print(f"{ratio:<11g} {rank:6d} " + " ".join(f"{error:12.3f}" for error in errors))


if __name__ == "__main__":
    main()
