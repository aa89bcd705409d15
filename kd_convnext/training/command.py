"""Runs ``fit``, ``validate``, ``test`` and ``predict`` by Lightning's command line."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

import kd_convnext
from kd_convnext.checkpoints.format import KEY, read_checkpoint
from kd_convnext.common.configs import with_shipped_files
from kd_convnext.common.console import complain, say
from kd_convnext.common.help import plain_formatter
from kd_convnext.common.machine import device_kind
from kd_convnext.common.parsing import PARSER, parsing
from kd_convnext.common.process import quiet_libraries
from kd_convnext.common.trust import guard_parsers, require_trusted, require_trusted_words
from kd_convnext.common.words import files_first, set_null, without_foreign_arguments, without_nested_nulls
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.idle import idle_options
from kd_convnext.data.manifest.once import warned_once
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.modules.classifier import ClassifierModule
from kd_convnext.modules.guard import leave_out_unlabelled
from kd_convnext.modules.idle import idle_model_options
from kd_convnext.runs.folder import RunFolder, require_writable
from kd_convnext.runs.loggers import keep_console
from kd_convnext.training.before_crops import refuse_misfits, refuse_teachers
from kd_convnext.training.before_student import (
    on_one_device,
    refuse_together,
    require_start_weights,
    trained_teacher,
)
from kd_convnext.training.checkpoint_files import BackgroundWriter, WholeFiles
from kd_convnext.training.checkpointing import RunCheckpoint
from kd_convnext.training.config_record import ConfigRecord
from kd_convnext.training.curve import begin_curve
from kd_convnext.training.foreign_errors import building_trainer, in_words, instantiated
from kd_convnext.training.header import RunHeader
from kd_convnext.training.loader_tuning import LoaderTuning
from kd_convnext.training.old_spelling import modern_words
from kd_convnext.training.one_fit import writing_into
from kd_convnext.training.previews import AugmentationPreview, CurveFigures
from kd_convnext.training.progress_bar import DataWaitBar
from kd_convnext.training.ranks import RankWatch
from kd_convnext.training.record import RunRecord
from kd_convnext.training.run_place import (
    TEACHER,
    chosen_folder,
    chosen_precision,
    earlier_precision,
    interrupted,
    is_first_process,
    refuse_taken,
    terminated,
)
from kd_convnext.training.trainer_options import require_possible

LINKED = ("num_classes", "class_names", "class_weights", "class_counts")
"""Arguments of the modules that come from the data."""

CHECKPOINT_DEFAULTS: dict[str, Any] = {
    "monitor": "val/f1_macro",
    "filename": "best",
    "save_weights_only": True,
    "auto_insert_metric_name": False,
    "enable_version_counter": False,
}


class TrainingCLI(LightningCLI):
    """Runs one configuration in one run folder."""

    folder: RunFolder
    _resumed_at: int | None = None
    _split_hash: str | None = None  # of the checkpoint's own fit
    _known: Sequence[str] = ()  # the checkpoint's classes
    _first_teacher: str | None = None  # the configuration of a teacher that is trained before the student

    @classmethod
    def parsed(cls, words: Sequence[str]) -> "TrainingCLI | None":
        """Runs a command.

        Args:
            words: The subcommand and its options.

        Returns:
            The finished command, or None where only help was wanted.

        Raises:
            KDConvNeXtError: Bad input.
        """
        # What a run is and where it lies, our own header says in one line.
        quiet_libraries()
        keep_console()
        guard_parsers()
        words = _ordered(words)
        command = words[0]
        # The parser knows short names of classes that are imported.
        _ = kd_convnext.DistillModule, kd_convnext.TeacherModule
        # The parsers of the other commands, which nobody asked for, would take three times as long again.
        options = {**PARSER, "formatter_class": plain_formatter()}
        alone = {"subcommands": staticmethod(lambda: {command: cls.subcommands()[command]})}
        of_one_command = cast("type[TrainingCLI]", type(cls.__name__, (cls,), alone))
        try:
            # Copies of rewritten files must exist until they are parsed, which the constructor does.
            with modern_words(words) as modern, in_words(words[0]):
                return of_one_command(
                    model_class=ClassifierModule,
                    datamodule_class=SpecimenDataModule,
                    subclass_mode_model=True,
                    auto_configure_optimizers=False,
                    load_from_checkpoint_support=False,
                    save_config_callback=None,
                    seed_everything_default=0,
                    trainer_defaults={"enable_model_summary": False},
                    parser_kwargs={**options, "prog": "kd-convnext", command: options},
                    args=modern,
                )
        except SIGTERMException:
            # A SystemExit without a code.
            raise terminated(words[0]) from None
        except SystemExit as stop:
            if stop.code == 0:
                return None
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise interrupted(words[0]) from None
            raise

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command; a fit is alone in its folder."""
        # Of several processes the first one asks for all.
        first = self.trainer.is_global_zero and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
        with writing_into(self.folder.path, alone=subcommand == "fit" and first):
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Prints where a fit that was to go on had ended already."""
        if self._resumed_at is not None and self.trainer.global_step == self._resumed_at:
            limit = "--trainer.max_steps" if 0 <= self.trainer.max_steps <= self._resumed_at else "--trainer.max_epochs"
            say(self.trainer, f"Nothing was left to train: the fit was finished already; a higher {limit} goes on")

    def finish(self) -> int:
        """Closes the loggers' runs, so that another command of this process begins its own.

        Returns:
            The exit code, 0.
        """
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
        return 0

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what a run has beside model, data and trainer, and links the model to the data."""
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run's folder below runs/.")
        parser.add_argument(
            "--teacher_config",
            type=str | None,
            default=None,
            help="Without --model.teacher_ckpt: trains this teacher first, on the same data, into RUN/teacher.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{name}": value for name, value in CHECKPOINT_DEFAULTS.items()})
        parser.add_lightning_class_args(RunRecord, "record")
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Replace results of another checkpoint in the same folder."
        )
        parser.link_arguments("overwrite", "record.overwrite")
        parser.add_argument("--wandb.pictures", type=bool, default=False, help="Send photographs to W&B as well.")
        parser.link_arguments("wandb.pictures", "record.wandb_pictures")
        parser.add_lightning_class_args(RunHeader, "header")
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, with one clear line for what cannot be understood."""
        _refuse_linked(args)
        args, nulls = without_nested_nulls(args)
        with parsing(args[0], self._parser(args[0])._option_string_actions):
            super().parse_arguments(parser, args)
            for option in nulls:
                set_null(self.config[self.config.subcommand], option)
            if nulls:
                parser.validate(self.config)  # some options must have a value
        require_possible(self.config.subcommand, self.config[self.config.subcommand].as_dict())

    def _parse_ckpt_path(self) -> None:
        """Takes the model of a checkpoint that is judged from the checkpoint; a fit goes by its configuration."""
        command = self.config.subcommand
        path = self.config[command].get("ckpt_path")
        if path is None:
            if command == "fit":
                return
            remedy = "Give the best.ckpt of a run."
            raise ConfigError(Finding("--ckpt_path", f"{command} needs a checkpoint", remedy))
        path = self.config[command].ckpt_path = str(Path(path).expanduser())
        checkpoint = read_checkpoint(path, may_be_edited=command == "fit")
        self._known = checkpoint[KEY].get("class_names", ())
        self._split_hash = (checkpoint[KEY].get("card") or {}).get("split_hash")
        if command == "fit":
            if "optimizer_states" not in checkpoint:
                what = "holds a network, not the state of its training"
                raise ConfigError(Finding(f"--ckpt_path {path}", what, "Give the last.ckpt of the run."))
            self._resumed_at = int(checkpoint["global_step"])
            return
        settings = {name: value for name, value in checkpoint["hyper_parameters"].items() if name not in LINKED}
        require_trusted(settings, f"{path}, hyper_parameters")
        given = (self.config[command].get("model") or {}).get("class_path", "")
        model = {"class_path": _class_path(checkpoint[KEY]["kind"], given, path), "init_args": settings}
        self.config[command].model = None
        with parsing(command):
            self.config = self.parser.parse_object({command: {"model": model}}, self.config)

    def before_instantiate_classes(self) -> None:
        """Chooses folder and precision, and points loggers and checkpoints into the folder."""
        config = self.config[self.subcommand]
        self._clean = copy.deepcopy(config)
        # Typed again, the configuration begins a new run in a folder of its own.
        self._clean.ckpt_path = None
        self._clean.trainer.default_root_dir = None
        self.folder = chosen_folder(config)
        self._name_teacher(config)
        if self.subcommand in ("validate", "test"):
            # Lightning's own table has a row for every number; ours says what was found.
            config.verbose = False
        trainer = config.trainer
        # Judging stays in float32, so that a checkpoint's answers do not depend on the machine.
        if self.subcommand == "fit" and trainer.precision is None and not trainer.plugins:
            earlier = earlier_precision(self.folder) if config.ckpt_path is not None else None
            trainer.precision = earlier or chosen_precision(device_kind(trainer.accelerator))
        config.trainer.default_root_dir = str(self.folder.path)
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(self.folder.checkpoints)
        elif self.subcommand == "fit":
            place = Path(config.checkpoint.dirpath)
            require_writable(place)
            if config.ckpt_path is None:
                refuse_taken(place, place, "--checkpoint.dirpath")
        for logger in _as_list(config.trainer.logger):
            options = logger.init_args
            if "save_dir" in options and str(options.save_dir) in (".", "None"):
                # W&B writes in a process of its own, whose working directory is that of the first run of this one.
                options.save_dir = str(self.folder.path.absolute())
            if "project" in options and options.get("name") is None:
                options.name = "/".join(self.folder.path.parts[-2:])

    def _name_teacher(self, config: Namespace) -> None:
        """Names the checkpoint of the teacher that is trained first, where none is given; the student names it too."""
        model = config.model.init_args
        if self.subcommand != "fit" or config.teacher_config is None or model.get("teacher_ckpt") is not None:
            return
        if "teacher_ckpt" not in model:
            remedy = "Leave it out, or give --model DistillModule."
            raise ConfigError(Finding("--teacher_config", "this model learns from no teacher", remedy))
        require_start_weights(model.get("student"))
        self._first_teacher = with_shipped_files([config.teacher_config])[0]
        refuse_together(self._first_teacher, self.folder, config.data.manifest)
        path = RunFolder(self.folder.path / TEACHER).best
        model.teacher_ckpt = self._clean.model.init_args.teacher_ckpt = str(path)
        config.header.describe_data = False

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer; what a constructor refuses is said as it said it."""
        # Lightning calls the parser's deprecated method, which knows no constructors of ours.
        self.parser.instantiate_classes = self._built
        super().instantiate_classes()

    def _built(self, config: Namespace) -> Namespace:
        with warned_once(lambda: self._knows(built)):
            built = instantiated(self.parser, config)
        return built

    def _before_fit(self) -> None:
        """Names options without effect, and trains the teacher that the configuration names."""
        first = is_first_process()
        if first:
            for told in idle_options(self.datamodule):
                complain(f"warning: --data: {told}")
            for told in idle_model_options(self.model, self.datamodule):
                complain(f"warning: --model: {told}")
        leave_out_unlabelled(self.model, self.datamodule, first=first)
        if self._first_teacher is not None and first:  # other processes are started by the first one
            data, trainer = self._clean.data.as_dict(), on_one_device(self._clean.trainer)
            trained_teacher(self._first_teacher, self.folder, data, trainer, run_training)
        refuse_teachers(self.datamodule, self.model)

    def _knows(self, built: Namespace) -> bool:
        """Tells whether the checkpoint's own fit has warned of these photographs."""
        return self._split_hash is not None and self._get(built, "data").split.hash == self._split_hash

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with our callbacks and, for a fit, always a CSV logger; a teacher is trained before."""
        command = str(self.subcommand)
        refuse_misfits(self.datamodule, self.model, self._known, fitting=command == "fit")
        if command == "fit":
            self._before_fit()
        trainer = self._get(self.config_init, "trainer")
        parser = self._parser(command)
        text = parser.dump(self._clean, skip_unset=False)
        configuration = ConfigRecord(self.folder.config, text, self._clean.as_dict())
        callbacks: list[Callback] = [configuration, CurveFigures(), RankWatch()]
        if command == "fit":
            callbacks[1:1] = [LoaderTuning(), AugmentationPreview()]
        if trainer.get("enable_progress_bar") is not False:
            callbacks.append(DataWaitBar())
        if trainer.get("fast_dev_run"):
            callbacks = []
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": callbacks}
        loggers = self._loggers(trainer.logger)
        plugins = _plugins(trainer.plugins, trainer.strategy, loggers)
        with building_trainer(command):
            return super().instantiate_trainer(logger=loggers, plugins=plugins, **kwargs)

    def _loggers(self, asked: Any) -> list[Logger] | bool:
        if asked is False:
            return False
        loggers: list[Logger] = [] if asked in (None, True) else asked if isinstance(asked, list) else [asked]
        if self.subcommand == "fit" and not any(isinstance(logger, CSVLogger) for logger in loggers):
            loggers.append(begin_curve(self.folder.path, self._resumed_at, first_process=is_first_process()))
        return loggers or False


def _ordered(words: Sequence[str]) -> list[str]:
    """Puts files before options, checks what is named in them, and gives a renamed network its own arguments."""
    command, *rest = with_shipped_files(words)
    rest = files_first(rest)
    require_trusted_words(rest, callables=True)
    if command == "fit":
        rest, told = without_foreign_arguments(rest)
        if told and is_first_process():
            complain(f"warning: {told}")
    return [command, *rest]


def _refuse_linked(words: Sequence[str]) -> None:
    """An explicit value for what comes from the data would be ignored without a word."""
    for word in words:
        for name in LINKED:
            if word.split("=")[0] in (f"--model.{name}", f"--model.init_args.{name}"):
                remedy = "Leave it out; --data.classes names the classes."
                raise ConfigError(Finding(f"--model.{name}", "it comes from the data", remedy))


def _plugins(asked: Any, strategy: Any, loggers: list[Logger] | bool) -> list[Any]:
    """Adds the writer of checkpoints, where the strategy writes whole ones and nobody chose another."""
    plugins = _as_list(asked)
    plain = isinstance(strategy, str) and strategy.startswith(("auto", "ddp"))
    if not plain or any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        return plugins
    # A logger that keeps checkpoints (`log_model`) reads a file as soon as it has been saved.
    at_once = any(getattr(logger, "_log_model", False) for logger in loggers or ())  # type: ignore[union-attr]
    return [*plugins, WholeFiles() if at_once else BackgroundWriter()]


def _class_path(kind: str, given: str, checkpoint: str) -> str:
    """Finds the module's class: ours by its name, any other by the configuration, as nothing is imported unasked."""
    if kind in kd_convnext.__all__:
        return f"kd_convnext.{kind}"
    if given.rpartition(".")[2] == kind:
        return given
    remedy = "Give the config.yaml of its run (--config), which names the class."
    raise ConfigError(
        Finding(f"--ckpt_path {checkpoint}", f"was trained as {kind}, a class of another package", remedy)
    )


def _as_list(given: Any) -> list[Any]:
    if given in (None, True, False):
        return []
    return given if isinstance(given, list) else [given]


def run_training(words: Sequence[str]) -> int:
    """Runs ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        words: The subcommand and its options.

    Returns:
        The exit code.

    Raises:
        KDConvNeXtError: Bad input.
    """
    cli = TrainingCLI.parsed(words)
    return 0 if cli is None else cli.finish()
