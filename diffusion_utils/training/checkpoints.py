"""What a training run leaves on disk, so that it can be stopped at any moment and go on."""

import io
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import ZipFile

import torch
from filelock import FileLock, Timeout
from torch import nn

from diffusion_utils.files import write_atomically, write_text
from diffusion_utils.training.config import FREE_ON_RESUME, TrainConfig
from diffusion_utils.training.optimizers import MovingAverage
from diffusion_utils.training.perceptual import DecoderLoss

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
RECORD = b'{"step": '  # how every line of a log begins


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made if need be, against other processes.  The lock is the operating system's
    and goes with the process, however that ends; the empty file `.lock` stays.

    Raises:
        FileExistsError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # One lock per path: a notebook whose cell was interrupted may run it again.
        with FileLock(folder / ".lock", timeout=0, is_singleton=True):
            yield
    except Timeout:
        raise FileExistsError(f"another run is going on in {folder}: wait for it, or choose another folder") from None


class Log:
    """A JSONL file, one record a line; opened for a run that stands at `step`, it drops what later
    steps (done after the last checkpoint, then lost) or a half-written line left behind."""

    def __init__(self, path: Path, step: int):
        self.path = path
        self.kept = [r for r in read_log(path) if r["step"] <= step] if path.exists() else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in self.kept))

    def write(self, record: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_log(path: str | Path) -> list[dict]:
    """The records of a `log.jsonl`; a half-written last line (the run was killed) is left out.

    Raises:
        ValueError: the file holds something else.
    """
    records, lines = [], Path(path).read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("step"), int):
                raise ValueError("no record")
        except ValueError:
            if number == len(lines) and line[: len(RECORD)] == RECORD[: len(line)]:
                break
            raise ValueError(
                f"line {number} of {path} is no record of a run: move that file away, or choose another folder"
            ) from None
        records.append(record)
    return records


@contextmanager
def stop_on_signal():
    """Turn Ctrl-C and SIGTERM into a question the loop asks between steps: yields `asked()`.

    A second Ctrl-C interrupts at once.  Outside the main thread Python allows no handlers; there
    nothing changes.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handler(number, frame):
        received.append(number)
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, handler)
    try:
        yield lambda: bool(received)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@dataclass
class TrainState:
    """All that training changes, and thus all that a checkpoint holds.

    Attributes:
        net, ema, optimizer: the network, the moving average of its weights, and what changes them.
        scaler: of the loss, enabled in float16 only.
        step, seconds, skipped_steps: done so far, earlier sessions of a resumed run included.
        decoder_loss: of objective "decoder": its critic learns, too.
    """

    net: nn.Module
    ema: MovingAverage
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    decoder_loss: DecoderLoss | None = None

    @property
    def learning(self) -> tuple[str, ...]:
        """The names of the parts that have a state."""
        return ("net", "ema", "optimizer", *(["decoder_loss"] if self.decoder_loss else []))

    def save(self, path: Path, config: TrainConfig) -> None:
        """Write a checkpoint, whole or not at all."""
        contents = {
            "config": asdict(config),
            "step": self.step,
            "seconds": self.seconds,
            "skipped_steps": self.skipped_steps,
            **{name: getattr(self, name).state_dict() for name in (*self.learning, "scaler")},
            # Batches need only seed and step; this is for networks with dropout and the like.
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        whole = io.BytesIO()  # when torch itself writes the file, a full disk comes back as some RuntimeError
        torch.save(contents, whole)
        write_atomically(path, lambda temporary: temporary.write_bytes(whole.getbuffer()))

    def restore(self, path: Path, config: TrainConfig, device: torch.device) -> None:
        """Put a checkpoint's contents in place.

        Raises:
            ValueError: damaged, or of a run that learns something else than `config` says.
        """
        contents = self.learnt(path, config, device, FREE_ON_RESUME)
        self.step, self.seconds = contents["step"], contents["seconds"]
        self.skipped_steps = contents.get("skipped_steps", 0)  # not in checkpoints of earlier versions
        torch.set_rng_state(contents["rng"].cpu())
        if contents["cuda_rng"] and torch.cuda.is_available():
            states = contents["cuda_rng"][: torch.cuda.device_count()]
            torch.cuda.set_rng_state_all([state.cpu() for state in states])

    def learnt(self, path: Path, config: TrainConfig, device: torch.device, free: set[str]) -> dict:
        """Take over what another state, or an earlier one, has learnt: weights, average, optimizer, scale of the
        loss.  Gives the whole checkpoint.

        Args:
            free: settings in which that run may differ from `config`.

        Raises:
            ValueError: the checkpoint is damaged, or of a run that differs in others.
        """
        contents = load_checkpoint(path, device)
        try:
            then, now = asdict(TrainConfig(**contents["config"])), asdict(config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is a checkpoint of another version of diffusion_utils: {error}") from None
        changed = [name for name in now if name not in free and then[name] != now[name]]
        if changed:
            raise ValueError(
                f"{path.parent} was trained with other settings ({', '.join(changed)}): go on "
                "with its own, or choose another folder"
            )
        try:
            for name in self.learning:
                getattr(self, name).load_state_dict(contents[name])
        except (RuntimeError, KeyError, ValueError):  # as each of them says that something does not fit
            raise ValueError(f"{path} holds another network than its settings say: was the code changed?") from None
        if contents.get("scaler") and self.scaler.is_enabled():  # on another device "auto" may mean another precision
            self.scaler.load_state_dict(contents["scaler"])
        return contents


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """A checkpoint's contents: config, step, seconds, net, ema, optimizer, rng, cuda_rng; since there are
    float16 runs also skipped_steps and scaler.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: the file is damaged, or something else than a checkpoint of this package.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: start the run without --resume")
    # Several processes on a CPU call it "cpu:0", a place that torch.load does not know.
    device = "cpu" if torch.device(device).type == "cpu" else device
    if not _whole(path):
        raise ValueError(
            f"{path} is damaged, or not a checkpoint at all: put a whole copy there, or choose another folder"
        )
    try:
        contents = torch.load(path, map_location=device, weights_only=True)
        missing = {"config", "step", "seconds", "net", "ema", "optimizer", "rng", "cuda_rng"} - set(contents)
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise  # nothing that the file is to blame for
    except Exception as error:
        reason = str(error).partition("\n")[0].removesuffix(".")
        raise ValueError(f"{path} is not a checkpoint of diffusion_utils ({reason}): choose another folder") from None
    if missing:
        lacking = ", ".join(sorted(missing))
        raise ValueError(f"{path} is not a checkpoint of diffusion_utils, it lacks {lacking}: choose another folder")
    return contents


def _whole(path: Path) -> bool:
    """Whether a file is one that torch.save wrote, to the last bit; torch.load does not notice all that are changed."""
    try:
        with ZipFile(path) as archive:
            return archive.testzip() is None
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # zipfile raises many kinds for what is no archive
        return False
