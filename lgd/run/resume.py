"""How a run goes on from a checkpoint: which one, with how many ranks, and after whose restart."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from lgd.build import Model
from lgd.config.keys import flatten
from lgd.config.schema import Config
from lgd.config.solver import scale_to_world_size
from lgd.config.values import ConfigError
from lgd.engine.averaging import PREFIX, WeightAverage, weights_by_model
from lgd.engine.checkpoint import Checkpoint, CheckpointError, list_changes
from lgd.engine.loop import TrainState
from lgd.files import read_small, write_text_atomically
from lgd.ranks import process_group
from lgd.run.output import shorten
from lgd.run.place import identify_agent
from lgd.weights.classes import Classes, order_classes
from lgd.weights.load import load_into
from lgd.weights.report import WeightsError
from lgd.words import counted

logger = logging.getLogger(__name__)

_LARGEST = 2**20
"""Bytes of a launch.json that could be ours."""


class StartsError(ConfigError):
    """A run that was started again and again in vain."""


class Starts:
    """OUTPUT_DIR/launch.json: how often the run there was started in vain, and by which elastic agents.

    An agent that starts its workers again (after a lost one, or when a machine joins) does so with the same
    arguments. Whether the run in OUTPUT_DIR is theirs cannot be told from these; nor from the agent's count
    of restarts, which stays when a machine joins and says nothing about what lies in OUTPUT_DIR.
    """

    def __init__(self, output_dir: Path) -> None:
        """Read what the last start left; every rank calls it."""
        self._path = output_dir / "launch.json"
        self.agents = gather_agents()
        before = process_group.broadcast_object(_read(self._path) if process_group.is_main() else {})
        known = {agent: count for agent, count in before["agents"].items() if agent in self.agents}
        self.is_restart: bool = bool(known) and before["opened"]
        """Whether one of the agents has already started the run that lies in OUTPUT_DIR."""
        self.has_left: bool = before["left"] and any(
            self.agents[agent] > count for agent, count in known.items()
        )
        """Whether the run left with `exits.RUN_AGAIN` and was started again as if that were a fault."""
        self._opened = False
        self._is_counted = False
        self._vain: dict[str, Any] | None = before["vain"]

    def count(self, settings: str, steps: list[int], limit: int) -> None:
        """Count this start to go on, until `forget`, as one that was in vain.

        One that was asked to leave counts half: that may come early, and several times, on a busy cluster.

        Args:
            settings: tells apart what may end otherwise: settings and code.
            steps: of the checkpoints on the disk.
            limit: starts in vain, with equal settings and no new checkpoint, after which there is no further
                one; 0 for none.

        Raises:
            StartsError: there were as many.
        """
        here = {"settings": settings, "steps": steps}
        before = self._vain or {}
        is_again = {key: before.get(key) for key in here} == here
        starts, weighed = (before["starts"], before["counted"]) if is_again else (0, 0.0)
        if 0 < limit <= weighed:
            where = f"step {steps[0]}" if steps else "its first checkpoint"
            raise StartsError(
                f"{self._path.parent}: started {counted(starts, 'time')} without coming from {where} to a "
                "new checkpoint; each time it was lost, or asked to leave before there was anything to "
                "save. See log.txt; save more often (SOLVER.CHECKPOINT_PERIOD), start with more time or "
                "memory, or go on trying (TRAIN.MAX_STARTS_WITHOUT_PROGRESS 0)"
            )
        self._vain = {**here, "starts": starts + 1, "counted": weighed + 1.0}
        self._is_counted = True
        self._write(left=False)

    def forget(self) -> None:
        """Count from nothing again: this start ended as another would."""
        if self._vain is not None:
            self._vain = None
            self._write(left=False)

    def note_opened(self) -> None:
        """Write down, on rank 0, that the run in OUTPUT_DIR is these agents'."""
        self._opened = True
        self._write(left=False)

    def note_left(self) -> None:
        """Write down, on rank 0, that the run leaves because it was asked to."""
        if self._is_counted and self._vain is not None:
            self._vain["counted"] -= 0.5
            self._is_counted = False
        self._write(left=True)

    def _write(self, left: bool) -> None:
        if not process_group.is_main():
            return
        opened = self._opened or self.is_restart
        content = {"agents": self.agents, "opened": opened, "left": left, "vain": self._vain}
        try:
            if self.agents or self._vain:
                write_text_atomically(self._path, json.dumps(content))
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.error("could not write %s: %s", self._path, error.strerror)


def gather_agents() -> dict[str, int]:
    """The elastic agents that started the ranks, and how often they have started them again."""
    parts = process_group.all_gather_objects(identify_agent())
    return {agent: count for part in parts for agent, count in part.items()}


def _read(path: Path) -> dict[str, Any]:
    """What the file says, as far as it can be believed."""
    try:
        content = json.loads(read_small(path, _LARGEST))
    except (OSError, ValueError, RecursionError):
        content = None
    content = content if isinstance(content, dict) else {}
    agents, vain = content.get("agents"), content.get("vain")
    is_sound = isinstance(vain, dict) and all(
        type(vain.get(key)) in (int, float) and 0 <= vain[key] < 1e9 for key in ("starts", "counted")
    )
    return {
        "agents": {agent: count for agent, count in agents.items() if type(count) is int}
        if isinstance(agents, dict) else {},
        "opened": content.get("opened") is True,
        "left": content.get("left") is True,
        "vain": vain if is_sound else None,
    }  # fmt: skip


@dataclass(frozen=True)
class Share:
    """How the images of a step are shared out.

    Attributes:
        world_size: ranks.
        accumulate_steps: micro-batches of each rank.
        asked_steps: TRAIN.ACCUMULATE_STEPS as it was set.
    """

    world_size: int
    accumulate_steps: int
    asked_steps: int


def adapt_to_ranks(
    cfg: Config, checkpoint: Checkpoint | None, world_size: int
) -> tuple[Config, Share, list[str]]:
    """Fit the settings to the number of ranks, such that a run that goes on keeps its batch.

    A new run is scaled from SOLVER.REFERENCE_WORLD_SIZE. One that goes on was scaled when it began; with
    fewer ranks now, more micro-batches make up for it, so that a rank's forward pass has at most as many
    images as before.

    Returns:
        The configuration, how it shares a step's images out, and a line for each change.

    Raises:
        ConfigError: the batch cannot be shared among the ranks.
    """
    saved = checkpoint.state.get("share") if checkpoint else None
    began_with = checkpoint.state["config"]["SOLVER.REFERENCE_WORLD_SIZE"] if checkpoint else 0
    cfg, changes = scale_to_world_size(cfg, began_with or world_size)
    asked = cfg.train.accumulate_steps
    steps = asked
    if saved is not None and saved["asked_steps"] == asked:
        steps = _choose_steps(cfg.solver.ims_per_batch, saved, world_size)
    if saved is not None and (saved["world_size"], saved["accumulate_steps"]) != (world_size, steps):
        changes.append(
            f"{counted(saved['world_size'], 'rank')} x "
            f"{counted(saved['accumulate_steps'], 'micro-batch', 'micro-batches')} before, now {world_size} "
            f"x {steps}: the same {counted(cfg.solver.ims_per_batch, 'image')} a step in the same order. "
            "Each micro-batch is normalised over its ranks by itself, so the numbers differ from those of "
            "an unchanged run by more than rounding"
        )
    cfg = replace(cfg, train=replace(cfg.train, accumulate_steps=steps))
    return cfg, Share(world_size, steps, asked), changes


def _choose_steps(batch: int, saved: Mapping[str, int], world_size: int) -> int:
    """The fewest micro-batches whose forward pass has at most as many images as the checkpoint's."""
    if batch % world_size:
        fitting = [str(number) for number in range(1, batch + 1) if batch % number == 0]
        raise ConfigError(
            f"the {counted(batch, 'image')} of a step (SOLVER.IMS_PER_BATCH) cannot be shared among "
            f"{counted(world_size, 'rank')}; the run began with {saved['world_size']}. Start one of "
            f"{', '.join(fitting)} ranks"
        )
    # Another batch than before is refused later, where it matters: `restore`.
    most = max(1, batch // (saved["world_size"] * saved["accumulate_steps"]))
    images = batch // world_size
    return next(steps for steps in range(1, images + 1) if images % steps == 0 and images // steps <= most)


def choose_seed(seed: int, checkpoint: Checkpoint | None) -> int:
    """The checkpoint's seed, or the configured one, or (for -1) a fresh one, the same on every rank."""
    if checkpoint is not None:
        return int(checkpoint.state["seed"])
    fresh = int(torch.randint(2**31 - 1, ())) if seed < 0 else seed
    return int(process_group.broadcast_object(fresh))


def restore(cfg: Config, state: TrainState, checkpoint: Checkpoint, classes: dict[str, Any]) -> None:
    """Put `state` back to the checkpoint, after making sure that the run can go on from it exactly.

    Args:
        cfg: the settings now.
        state: of a new run; changed in place.
        checkpoint: where to go on.
        classes: names and category ids of the data now, as files of weights keep them.

    Raises:
        CheckpointError: other classes, another batch, or another model.
    """
    saved = checkpoint.state
    if saved["classes"]["names"] != classes["names"]:
        raise CheckpointError(
            f"{checkpoint.path} was trained on other classes ({shorten(saved['classes']['names'])}) than "
            f"DATASETS.TRAIN has ({shorten(classes['names'])}); choose another OUTPUT_DIR"
        )
    changes = list_changes(saved["config"], flatten(cfg))
    batch = [line for line in changes if line.startswith("SOLVER.IMS_PER_BATCH")]
    if batch:
        raise CheckpointError(
            f"{checkpoint.path} cannot go on with another batch ({batch[0]}): the order of the data depends "
            "on it; keep SOLVER.IMS_PER_BATCH, or start anew with MODEL.WEIGHTS"
        )
    load_state(state.model, checkpoint)
    _load_optimizers(state, checkpoint)
    logger.info(
        "resumed from %s: step %d of %d, model, optimizers, loss normaliser, data order (seed %d)%s",
        checkpoint.path,
        checkpoint.step,
        cfg.solver.max_iter,
        cfg.seed,
        "".join(f", best {name} {state.best[name]:.2f}" for name in state.best if name != "step")
        + (f" at step {state.best['step']}" if state.best else ""),
    )
    for line in changes:
        logger.warning("setting changed since the checkpoint: %s", line)


def _load_optimizers(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put the rest of `state` back; each of torch's optimizers takes what another one's has, and stumbles."""
    saved = checkpoint.state["optimizers"]
    for side in state.sides:
        groups = saved.get(side.name, {"param_groups": [{}]})["param_groups"]
        if any(("betas" in side.optimizer.defaults) != ("betas" in group) for group in groups):
            raise CheckpointError(
                f"{checkpoint.path} was written with another optimizer of the {side.name}; keep "
                "SOLVER.OPTIMIZER, or start anew with MODEL.WEIGHTS"
            )
    try:
        state.load_state_dict(checkpoint.step, checkpoint.state)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # torch looks at little
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint.path}: its optimizers do not fit the model: {reason}; start anew with MODEL.WEIGHTS"
        ) from error


def load_state(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Fill the model from a checkpoint of its own run; raises `WeightsError` where it does not fit."""
    _load(model, checkpoint, checkpoint.state["model"])


def load_to_evaluate(model: torch.nn.Module, checkpoint: Checkpoint, classes: Classes) -> None:
    """`load_state` for an evaluation alone, on data whose classes may have another order."""
    _load(model, checkpoint, _in_order(checkpoint.state["model"], model, checkpoint, classes))


def average_to_evaluate(model: Model, checkpoint: Checkpoint, classes: Classes) -> WeightAverage:
    """The student's moving average that a checkpoint holds, where `model` lies; for `load_to_evaluate`."""
    average = WeightAverage(cast(torch.nn.Module, model.student), decay=0.0, warmup=0.0)
    saved = weights_by_model(checkpoint.state["model"], checkpoint.state["ema"]["tensors"])["ema"]
    tensors = _in_order(saved, model, checkpoint, classes)
    try:
        average.load_state_dict(
            {"tensors": {name: tensors[PREFIX + name] for name in average.tensors}, "num_updates": 0}
        )
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{checkpoint.path}: its moving average does not fit the model: {error}") from None
    return average


def _in_order(
    tensors: Mapping[str, torch.Tensor], model: torch.nn.Module, checkpoint: Checkpoint, classes: Classes
) -> Mapping[str, torch.Tensor]:
    try:
        trained = Classes.of_file(checkpoint.state)
        return tensors if trained is None else order_classes(tensors, trained, classes, model)
    except WeightsError as error:
        raise WeightsError(f"{checkpoint.path}: {error}") from None


def _load(model: torch.nn.Module, checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    load_into(model, tensors, source=str(checkpoint.path), kind="checkpoint of this run")
