"""Turns what torch, Lightning and W&B raise for a user's mistake, or for a lost process, into the project's errors."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, cast

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from kd_convnext.data.loading.watched import loader_finding
from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError, TrainingError
from kd_convnext.runs.loggers import wandb_in_words
from kd_convnext.training.ranks import told_to_stop
from kd_convnext.training.run_place import terminated

_PEER = re.compile(
    r"[Cc]onnection (closed|reset|refused)|Broken pipe|NCCL\S* (abort|remote)|[Gg]loo\b.*(timed? ?out|read error)"
    r"|Application timeout caused pair closure|barrier.*timed? ?out|Timed out waiting \d+ms for"
)

_GO_ON = "What is finished stays: go on from RUN/checkpoints/last.ckpt (--ckpt_path)."


@contextlib.contextmanager
def in_words(command: str) -> Iterator[None]:
    """Translates errors of the libraries that a training runs on.

    Args:
        command: Its name, for the message.

    Raises:
        TrainingError: A process of the training is gone.
        Terminated: It is gone because all were told to stop.
        ConfigError: Lightning refuses an option, or W&B the run.
    """
    try:
        with wandb_in_words():
            yield
    except MisconfigurationException as error:
        raise ConfigError(_refused(command, error)) from error
    except _OF_OPTIONS as error:
        lost = _peer_finding(error)
        if lost is not None and told_to_stop():
            # Both were told, and the other was quicker.
            raise terminated(command) from error
        found = loader_finding(error) or lost
        if found is not None:
            raise TrainingError(found) from error
        if "Expected more than 1 value per channel" in str(error):
            what = "the network's batch normalisation needs two images in a batch at least"
            raise ConfigError(Finding("--data.batch_size", what, "Use 2 or more.")) from error
        if _raised_in(error) != "lightning":
            raise
        # A callback or strategy that does not suit this training, such as early stopping by an unknown score.
        raise ConfigError(_refused(command, error)) from error


@contextlib.contextmanager
def building_trainer(command: str) -> Iterator[None]:
    """Translates whatever Lightning raises while it builds a trainer: it is about the options, not about our code.

    Args:
        command: The command's name, for the message.

    Raises:
        ConfigError: The trainer cannot be built so.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, ImportError, RuntimeError, AssertionError) as error:
        raise ConfigError(_refused(command, error)) from error


def refused_by(kind: type[Any], error: Exception) -> ConfigError:
    """Describes what a constructor of a library, such as a logger's or a strategy's, has raised.

    Args:
        kind: The class that was to be built.
        error: Its error.
    """
    remedy = "Change its arguments in the configuration, or leave it out."
    return ConfigError(Finding(f"{kind.__module__}.{kind.__qualname__}", _one_line(error), remedy))


_OF_OPTIONS = (RuntimeError, ValueError, TypeError, AttributeError, ImportError, LookupError, ZeroDivisionError)


def _raised_in(error: BaseException) -> str:
    """Finds the package of the code that raised an error."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return str(frame.tb_frame.f_globals.get("__name__", "")).split(".")[0] if frame is not None else ""


def _refused(command: str, error: BaseException) -> Finding:
    if isinstance(error, LookupError):
        what = f"something is missing in the checkpoint or among the options: {_one_line(error)}"
        return Finding(f"kd-convnext {command}", what, "Give a whole last.ckpt of a run (--ckpt_path), or begin anew.")
    remedy = f"Change the option that it speaks of (kd-convnext {command} --help)."
    return Finding(f"kd-convnext {command}, --trainer", _one_line(error), remedy)


def _peer_finding(error: Exception) -> Finding | None:
    if not isinstance(error, RuntimeError) or not _PEER.search(str(error)):
        return None
    return Finding("--trainer.devices", "another process of this training has ended or is out of reach", _GO_ON)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:400] or type(error).__name__


def instantiated(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Builds the objects that a configuration describes; what a constructor refuses is said as it said it.

    Args:
        parser: Of the command.
        config: As parsed.

    Returns:
        The configuration with objects in place of their descriptions.

    Raises:
        KDConvNeXtError: What a constructor of ours refuses, or another package's in our words.
    """
    refused: list[KDConvNeXtError] = []

    def build(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return kind(*args, **kwargs)
        except KDConvNeXtError as error:
            refused.append(error)
            raise
        except Exception as error:
            if not kind.__module__.startswith("kd_convnext."):
                refused.append(refused_by(kind, error))
            elif isinstance(error, OSError):
                place, what = str(error.filename or kind.__name__), f"cannot be used ({error.strerror or error})"
                refused.append(ConfigError(Finding(place, what, "Name another file.")))
            raise

    try:
        return cast(Namespace, parser.instantiate(config, instantiators=[(build, object, True)]))
    except ValueError:
        # The parser tries every type that an argument may have, and reports all failures as one of its own.
        if refused:
            raise refused[-1] from None
        raise
