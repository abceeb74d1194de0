"""Several teachers behind one velocity field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flow_opd.policies.joint import FieldShare, joint_velocities
from flow_opd.protocols import Router, VelocityField
from flow_opd.types import Conditioning


@dataclass(frozen=True)
class Teacher:
    """What a teacher answers: its own velocity, or a point beyond it as seen from the base.

        v = v_teacher + (lambda - 1) (v_teacher - v_base)

    Source: GFD-OPD and STEP-OPD (arXiv 2608.04887), extrapolated targets; lambda = 1 is the teacher itself.
    """

    field: VelocityField
    base: VelocityField | None = None  # under the teacher's guidance; needed where lambda is not 1
    extrapolation: float = 1.0  # lambda

    def __post_init__(self) -> None:
        """Checks that an extrapolation has a base to start from."""
        assert self.extrapolation == 1.0 or self.base is not None

    def shares(self, rows: Tensor, weight: Tensor) -> list[FieldShare]:
        """Returns what fields make up the answer at `rows`, [N], times `weight`, [N]."""
        if self.base is None or self.extrapolation == 1.0:
            return [FieldShare(self.field, rows, weight)]
        return [
            FieldShare(self.field, rows, weight * self.extrapolation),
            FieldShare(self.base, rows, weight * (1.0 - self.extrapolation)),
        ]


class RoutedTeachers:
    """v_target(x, c) = sum_k alpha_k(c) v_k(x, c); each teacher sees only the rows it has a share in.

    Source: Flow-OPD, arXiv 2605.08063 (task routing).
    """

    def __init__(self, teachers: Mapping[str, Teacher], router: Router) -> None:
        """Joins teachers and router; the router's names must be keys of `teachers`."""
        assert set(router.teachers) <= set(teachers), (router.teachers, list(teachers))
        self.teachers = teachers
        self.router = router

    def shares(self, conditioning: Conditioning) -> list[FieldShare]:
        """Returns the routed target as a sum over fields; teachers without a row are there, too."""
        alpha = self.router.weights(conditioning)
        shares: list[FieldShare] = []
        for column, name in enumerate(self.router.teachers):
            rows = torch.nonzero(alpha[:, column]).flatten()
            shares += self.teachers[name].shares(rows, alpha[rows, column])
        return shares

    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Returns the routed velocity, [M, C, H, W], float32; all teachers answer in one pass."""
        return joint_velocities([self.shares(conditioning)], latents, sigma, conditioning)[0]
