"""The command line of `python -m lgd.preflight`, and the order of what it looks at."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from lgd import exits
from lgd.config.load import config_hash, load_config
from lgd.config.schema import Config
from lgd.config.solver import scale_to_world_size
from lgd.config.values import ConfigError
from lgd.ending import last_line
from lgd.events import add_json_option, json_file, wants_events, write_event
from lgd.files import prepare_file, write_text_atomically
from lgd.preflight import findings, report, slowness
from lgd.preflight.calls import Call, Listener, call_all
from lgd.preflight.card import Card, make_card, nodes_of
from lgd.preflight.collectives import AllReduce, Link, Measurement, measure
from lgd.preflight.findings import Finding, Limits
from lgd.preflight.meeting import MeetingError, open_meeting
from lgd.preflight.place import Place, read_place
from lgd.preflight.storage import Dataset, Storage, look_around, remove_mark
from lgd.ranks.reach import keep_to_loopback
from lgd.ranks.store import LOOPBACK

FINDINGS = 1
"""Exit code where something is wrong."""

_STAGE_SECONDS = 60.0
_COLLECTIVE_SECONDS = 20.0


@dataclass
class Reports:
    """All that rank 0 has collected.

    Attributes:
        cards: by rank, of those that came.
        calls: from rank to rank.
        storages: one of each node; empty without a recipe.
        measurements: by rank; empty where nothing was measured.
        skipped: why nothing was measured.
    """

    cards: dict[int, Card] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    measurements: dict[int, Measurement] = field(default_factory=dict)
    skipped: str = ""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd preflight",
        description="Look at the machines of a job before it trains; started as the training would be.",
        epilog=f"Exit codes: {exits.DONE} all well, {FINDINGS} findings, {exits.USER_ERROR} wrong arguments.",
    )
    parser.add_argument("--config-file", metavar="RECIPE", help="a recipe: look at its data and disks too")
    add_json_option(parser)
    parser.add_argument(
        "--timeout", type=float, default=45.0, metavar="SECONDS", help="how long to wait for ranks to come"
    )
    parser.add_argument(
        "--slow-factor", type=float, default=3.0, metavar="X", help="slow is X times below the others' median"
    )
    parser.add_argument(
        "--min-bandwidth", type=float, metavar="MB/S", help="least between two nodes; 0: any will do"
    )
    parser.add_argument(
        "--max-skew", type=float, default=1.0, metavar="SECONDS", help="between the clocks of two nodes"
    )
    parser.add_argument(
        "--largest", type=int, default=256, metavar="MIB", help="largest message; gloo stops at 16 MiB"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.opts and not arguments.config_file:
        parser.error("KEY VALUE needs --config-file")
    if arguments.timeout <= 0 or arguments.slow_factor <= 1 or arguments.largest < 1:
        parser.error("--timeout must be above 0, --slow-factor above 1, --largest at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 for findings, 2 for wrong arguments."""
    arguments = parse_arguments(argv)
    rank = 0
    try:
        place = read_place(os.environ)
        rank = place.rank
        return _Preflight(arguments, place).run()
    except ConfigError as error:
        if rank == 0:
            sys.stderr.write(f"error: {last_line(str(error))}\n")
        return exits.USER_ERROR
    except MeetingError as error:
        sys.stderr.write(f"preflight, rank {rank}: {error}\n")
        return FINDINGS
    except KeyboardInterrupt:
        return exits.CTRL_C


class _Preflight:
    """One rank's way through the stages; rank 0 collects what all find and decides."""

    def __init__(self, arguments: argparse.Namespace, place: Place) -> None:
        self.arguments = arguments
        self.place = place
        self.is_main = place.rank == 0
        self._prepare_file()
        self.cfg, self.config_problem = self._load_recipe()
        self.reports = Reports()

    def _prepare_file(self) -> None:
        file = json_file(self.arguments)
        if file is None or not self.is_main:
            return
        try:
            prepare_file(file)
        except OSError as error:
            raise ConfigError(f"--json {file}: {error.strerror}") from error

    def run(self) -> int:
        self.meeting = open_meeting(self.place, self.arguments.timeout)
        if self.place.is_one_machine:
            keep_to_loopback()
        self.listener = Listener(LOOPBACK if self.place.is_one_machine else "")
        device = self._introduce()
        cards = self.reports.cards
        calls = call_all(cards[self.place.rank], cards)
        self.meeting.post("calls", [asdict(call) for call in calls])
        mark = self._look_around()
        plan = self._plan() if self.is_main else self.meeting.hear("plan", 3 * _STAGE_SECONDS)
        hangs = self._measure(device) if plan == "" else False
        code = self._conclude(mark, plan) if self.is_main else self._wait_for_verdict()
        if hangs:
            sys.stdout.flush()
            os._exit(code)  # a thread is stuck in a collective, and would keep the process from ending
        if dist.is_initialized():
            dist.destroy_process_group()
        return code

    def _load_recipe(self) -> tuple[Config | None, list[tuple[str, str]]]:
        """Load it; what is wrong with it is misuse on rank 0, and a finding of the host on another."""
        if not self.arguments.config_file:
            return None, []
        try:
            cfg = load_config(self.arguments.config_file, self.arguments.opts)
            return scale_to_world_size(cfg, self.place.world_size)[0], []
        except (ConfigError, OSError) as error:
            if self.is_main:
                raise ConfigError(str(error)) from error
            return None, [(str(error), "make the recipe readable there, the same as on rank 0")]

    def _introduce(self) -> torch.device | None:
        """Say who is here, and learn who else is."""
        card, device = make_card(
            self.place,
            self.cfg.model.device if self.cfg else "auto",
            config_hash(self.cfg) if self.cfg else "",
            self.config_problem,
            self.listener.port,
        )
        self.meeting.post("card", asdict(card))
        if self.is_main:
            found = self.meeting.collect("card", range(self.place.world_size), self.arguments.timeout)
            self.meeting.announce("cards", found)
        cards = self.meeting.hear("cards", 2 * self.arguments.timeout)
        self.reports.cards = {int(rank): _read_card(content) for rank, content in cards.items()}
        if self.place.rank not in self.reports.cards:
            raise MeetingError("came too late, the others have begun; raise --timeout")
        return device

    def _look_around(self) -> str:
        """The first rank of every node looks at data and disks; returns what rank 0 must clear away."""
        ranks = next(ranks for ranks in nodes_of(self.reports.cards).values() if self.place.rank in ranks)
        if self.cfg is None or self.place.rank != ranks[0]:
            return ""
        left = ""
        try:
            storage, left = look_around(
                self.cfg,
                self.place.rank,
                local_world_size=len(ranks),
                world_size=self.place.world_size,
                mark=lambda: str(self.meeting.hear("mark", 2 * _STAGE_SECONDS)),
            )
        except Exception as error:  # whatever a broken file system makes of it, the others shall go on
            storage = Storage(self.place.rank, {}, error=f"{type(error).__name__}: {error}")
        if self.is_main:
            self.meeting.announce("mark", left)
        self.meeting.post("storage", asdict(storage))
        return left

    def _plan(self) -> str:
        """Collect what was found so far; returns why speed cannot be measured, "" if it can."""
        cards, reports = self.reports.cards, self.reports
        calls = self.meeting.collect("calls", cards, _STAGE_SECONDS)
        reports.calls = [Call(**call) for content in calls.values() for call in content]
        if self.cfg is not None:
            storages = self.meeting.collect("storage", self._leaders(), _STAGE_SECONDS)
            reports.storages = [_read_storage(content) for content in storages.values()]
        silent = cards.keys() - calls.keys()
        if silent:
            plan = f"{findings.who(min(silent), cards)} went silent"
        elif any(call.error for call in reports.calls):
            plan = "some ranks cannot reach others"
        elif len({card.backend for card in cards.values()}) > 1 or any(not c.device for c in cards.values()):
            plan = "not all ranks have their device"
        elif any(not card.address for card in cards.values()):
            plan = "not all ranks have their interface"
        else:
            plan = ""
        self.meeting.announce("plan", plan)
        return plan

    def _measure(self, device: torch.device | None) -> bool:
        """Measure in a thread that may hang; returns whether it does."""
        assert device is not None, "the plan is to measure only where all have a device"
        result = Measurement()
        thread = threading.Thread(
            target=_try, args=(result, lambda: self._run_measure(result, device)), daemon=True
        )
        thread.start()
        thread.join(_STAGE_SECONDS)
        if thread.is_alive():
            result.error = f"still waiting after {_STAGE_SECONDS:.0f} s"
        self.meeting.post("measurement", asdict(result))
        return thread.is_alive()

    def _run_measure(self, result: Measurement, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has its own
        measure(
            result,
            PrefixStore("group", self.meeting.store),
            self.place.rank,
            nodes_of(self.reports.cards),
            device,
            largest=self.arguments.largest * 2**20,
            timeout=_COLLECTIVE_SECONDS,
        )

    def _leaders(self) -> list[int]:
        return [ranks[0] for ranks in nodes_of(self.reports.cards).values()]

    def _conclude(self, mark: str, plan: str) -> int:
        """On rank 0: collect the rest, print, and tell the others how it ended."""
        if mark:
            remove_mark(mark)
        self.reports.skipped = plan
        if plan == "":
            found = self.meeting.collect("measurement", self.reports.cards, _STAGE_SECONDS)
            self.reports.measurements = {rank: _read_measurement(content) for rank, content in found.items()}
        decided = list(self._decide())
        content = asdict(self.reports) | {"findings": [asdict(finding) for finding in decided]}
        words, file = sys.stdout, json_file(self.arguments)
        if wants_events(self.arguments):
            write_event("result", **content)
            words = sys.stderr
        for line in self._describe(decided):
            words.write(line + "\n")
        words.flush()
        if file is not None:
            write_text_atomically(file, json.dumps(content, indent=2) + "\n")
        code = FINDINGS if decided else exits.DONE
        self.meeting.announce("verdict", code)
        # The store may be this process's own: it must outlive the others' last look.
        self.meeting.collect("left", self.reports.cards.keys() - {0}, 5.0)
        return code

    def _wait_for_verdict(self) -> int:
        code = int(self.meeting.hear("verdict", 3 * _STAGE_SECONDS))
        self.meeting.post("left", True)
        return code

    def _decide(self) -> Iterator[Finding]:
        reports, cards = self.reports, self.reports.cards
        limits = Limits(
            self.arguments.slow_factor,
            None if self.arguments.min_bandwidth is None else self.arguments.min_bandwidth * 1e6,
            self.arguments.max_skew,
        )
        yield from findings.missing_ranks(self.place, cards, self.arguments.timeout)
        yield from findings.own_problems(cards)
        yield from findings.other_networks(cards)
        yield from findings.unreachable(reports.calls, cards)
        yield from findings.odd_ones(cards)
        yield from findings.skewed_clocks(reports.calls, cards, limits)
        if self.cfg is not None:
            yield from findings.storage_problems(reports.storages, cards, self._leaders())
        yield from slowness.broken_measurements(reports.measurements, cards)
        yield from slowness.slow_links(reports.measurements, cards, limits)
        yield from slowness.slow_nodes(reports.measurements, cards, limits)

    def _describe(self, decided: Sequence[Finding]) -> Iterator[str]:
        reports, cards = self.reports, self.reports.cards
        gradient_bytes = max((storage.gradient_bytes for storage in reports.storages), default=0)
        sections = (
            report.describe_ranks(self.place, cards),
            report.describe_clocks(reports.calls, cards),
            report.describe_storage(reports.storages, cards),
            report.describe_speed(reports.measurements, cards, gradient_bytes),
            iter([f"speed not measured: {reports.skipped}"] if reports.skipped else []),
            iter([] if self.cfg else ["data and disks not looked at: no --config-file"]),
            report.describe_findings(decided),
        )
        for section in map(list, sections):
            if section:
                yield from [*section, *([""] if section[-1] else [])]


def _try(result: Measurement, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # torch raises many kinds; all of them are findings
        said = re.sub(r"^\[\S+\] ", "", " ".join(str(error).split()))  # without the place in gloo's source
        result.error = said[:300] or type(error).__name__


def _read_card(content: Mapping[str, Any]) -> Card:
    problems = tuple((what, way_out) for what, way_out in content["problems"])
    return Card(**{**content, "interfaces": tuple(content["interfaces"]), "problems": problems})


def _read_storage(content: Mapping[str, Any]) -> Storage:
    datasets = {name: Dataset(**found) for name, found in content["datasets"].items()}
    return Storage(**{**content, "datasets": datasets})


def _read_measurement(content: Mapping[str, Any]) -> Measurement:
    links = [Link(**link) for link in content["links"]]
    all_reduces = [AllReduce(**result) for result in content["all_reduces"]]
    return Measurement(**{**content, "links": links, "all_reduces": all_reduces})
