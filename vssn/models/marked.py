"""MarkedFrames: models that do something of their own where a sequence starts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vssn.models.base import FrameModel
from vssn.nn.given import check_state
from vssn.nn.states import State
from vssn_kernels.arguments import is_dense


class MarkedFrames(FrameModel):
    """A FrameModel whose frames say in their last number that they are one: 1; before the first frame stands 0. The
    encoder does not get it. A constructor calls `_mark_frames` behind `_set_frames`."""

    def _mark_frames(self) -> None:
        self.frame_size += 1

    @property
    def seen_size(self) -> int:
        return self.frame_size - 1

    def frames(self, x: Tensor, observed: Tensor | None) -> Tensor:
        seen = super().frames(x, observed)
        return torch.cat((seen, seen.new_ones(*seen.shape[:2], 1)), -1)

    def _encode(self, frames: Tensor) -> Tensor:
        return super()._encode(frames[..., :-1])

    @staticmethod
    def _is_first(frames_before: Tensor) -> Tensor:
        """[T, B, 1]: 1 where no frame stands before, from those before [T, B, F]."""
        return 1 - frames_before[..., -1:]

    def _check_state(
        self, state: object, sizes: Mapping[str, tuple[str, int]], batch: int | None, like: Tensor
    ) -> State:
        """A state (d, z, x_last), checked. Args: sizes: as in `check_state`. An x_last without the mark is a frame."""
        last = state[-1] if isinstance(state, tuple) and len(state) == len(sizes) else None
        if is_dense(last) and last.dim() == 2 and last.shape[1] == self.seen_size:
            state = (*state[:-1], torch.cat((last, last.new_ones(len(last), 1)), 1))  # type: ignore[index]
        return State(*check_state(state, sizes, batch, like))
