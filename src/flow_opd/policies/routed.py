"""Several teachers behind one velocity field."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flow_opd.protocols import Router, VelocityField
from flow_opd.types import Conditioning


class RoutedTeachers:
    """v_target(x, c) = sum_k alpha_k(c) v_k(x, c); each teacher sees only the rows it has a share in.

    Source: Flow-OPD, arXiv 2605.08063 (task routing).
    """

    def __init__(
        self, teachers: Mapping[str, VelocityField], router: Router, *, lockstep: bool = False
    ) -> None:
        """Joins teachers and router; the router's names must be keys of `teachers`.

        Args:
            teachers: by name.
            router: alpha of each row.
            lockstep: asks every teacher every time, about the first row where it has none: processes that
                share a sharded base must all call it equally often, whatever their prompts.
        """
        assert set(router.teachers) <= set(teachers), (router.teachers, list(teachers))
        self.teachers = teachers
        self.router = router
        self.lockstep = lockstep

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the routed velocity, [M, C, H, W]; every teacher is activated at most once."""
        alpha = self.router.weights(conditioning).to(latents.device)
        target = torch.zeros_like(latents, dtype=torch.float32)
        for column, name in enumerate(self.router.teachers):
            rows = torch.nonzero(alpha[:, column]).flatten()
            if len(rows) == 0 and self.lockstep:
                rows = torch.zeros(1, dtype=torch.long)  # alpha is 0 there
            if len(rows):
                part = self.teachers[name].velocity(latents[rows], sigma[rows], conditioning.rows(rows))
                target[rows] += alpha[rows, column].view(-1, 1, 1, 1) * part
        return target
