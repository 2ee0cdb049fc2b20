"""What a detector must offer so that the engine can train it and the distiller can teach it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from lgd.structures import Batch, Detections, Features, PaddedDetections

Assignment = Any
"""A detector's own record of which prediction answers for which object; opaque to the others.

Its `first(number)` is that of the first images, with the divisors of the losses in proportion.
"""


class Detector(Protocol):
    """A detector as the engine and the distiller see it. Implementations are `nn.Module`s."""

    @property
    def channels(self) -> int:
        """C, the channels of every feature level."""
        ...

    @property
    def strides(self) -> Mapping[str, int]:
        """Pixels of the canvas per cell by level, fine to coarse: {"p3": 8, ...}."""
        ...

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    @property
    def static_parts(self) -> Sequence[str]:
        """Methods in which no size depends on values and nothing asks the host: what may be compiled."""
        ...

    @property
    def head_parts(self) -> Sequence[str]:
        """Submodules that read features; `extract_features` uses nothing of them."""
        ...

    def extract_features(self, batch: Batch) -> Features:
        """Normalise the images, run backbone and neck: {level: (B, C, H_l, W_l)}."""
        ...

    def compute_losses(
        self, features: Features, batch: Batch, assignment: Assignment | None = None
    ) -> tuple[dict[str, Tensor], Assignment | None]:
        """Run the head on `features` and hold it against the ground truth.

        Args:
            features: as from `extract_features`, or the teacher's of the same shapes.
            batch: images and targets.
            assignment: the assignment of an earlier call on the same batch, to be used again; or what is
                `first` of it for the first images of that batch.

        Returns:
            Scalar losses by name ("loss_cls", ...), and the assignment (None where a detector
            samples anew on every call).
        """
        ...

    def decode(self, features: Features, batch: Batch) -> PaddedDetections:
        """Run the head on `features`; detections in original pixels, in slots of a fixed number.

        The one way to detections, for evaluation, prediction and export. Where it is exported
        (`torch.compiler.is_exporting`) no size depends on a value.
        """
        ...

    def detect(self, features: Features, batch: Batch) -> list[Detections]:
        """Give what `decode` gives, one `Detections` per image."""
        ...

    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """The parameters that the freeze phase freezes (the backbone without the neck)."""
        ...


@runtime_checkable
class OneStageDetector(Detector, Protocol):
    """A detector whose head reads nothing but features, so that it can run once for student and teacher.

    What a two-stage detector's head reads also depends on its proposals.
    """

    def compute_losses_of_both(
        self, features: Features, taught: Features, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Do what two calls of `compute_losses` do, running the head once on both features together.

        Args:
            features: as from `extract_features`; the assignment is theirs.
            taught: the teacher's, of the same shapes.
            batch: images and targets.

        Returns:
            The losses on `features` and those on `taught`.
        """
        ...


@dataclass(frozen=True)
class TowerFeatures:
    """What lies between the convolutions of a dense head's two towers.

    Attributes:
        for_class: {level: (B, C, h, w)} of the tower that ends in the scores.
        for_box: the same of the tower that ends in the boxes.
    """

    for_class: Features
    for_box: Features


@dataclass(frozen=True)
class DensePredictions:
    """What a dense head says at each of A positions: anchors or locations of all levels.

    Attributes:
        logits: (B, A, K) of the classes.
        boxes: (B, A, 4) xyxy, pixels of the canvas, not clipped to it.
        sides: (B, A, 4, n + 1) logits of the distributions of the boxes' sides; None from a head without.
    """

    logits: Tensor
    boxes: Tensor
    sides: Tensor | None = None


@runtime_checkable
class DenseDetector(OneStageDetector, Protocol):
    """A detector whose head is two towers of convolutions that predict at every cell, and can be cut."""

    @property
    def num_head_convs(self) -> int:
        """Convolutions of each tower before the predicting ones."""
        ...

    @property
    def positions_per_cell(self) -> int:
        """Anchors or locations of a cell."""
        ...

    def begin_head(self, features: Features, num_convs: int) -> TowerFeatures:
        """Run the first `num_convs` convolutions of each tower, with what follows each of them."""
        ...

    def finish_head(self, begun: TowerFeatures, num_convs: int) -> DensePredictions:
        """Run the rest of a head whose first `num_convs` convolutions have given `begun`."""
        ...

    def find_foreground(self, assignment: Assignment) -> Tensor:
        """Mark the positions that answer for an object: (B, A) bool."""
        ...
