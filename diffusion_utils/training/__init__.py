"""Training: `train` and its configuration, and what a run leaves on disk."""

from diffusion_utils.training.checkpoints import load_checkpoint, read_log, stop_on_signal
from diffusion_utils.training.config import Run, TrainConfig
from diffusion_utils.training.loop import StepRecord, train
