"""Scores of an evaluation that are finished: each row on each domain in a file of its own."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flow_opd.config.common import PROMPT_CHECKS
from flow_opd.config.evaluate import EvaluateSettings
from flow_opd.config.locations import locate, locate_model
from flow_opd.config.rewards import TRAINING
from flow_opd.config.versions import code_versions
from flow_opd.evaluation.images import ImageScores
from flow_opd.files import sha256, write_json
from flow_opd.processes import Processes
from flow_opd.runs.identity import content, rewards_identity


class ScoreCache:
    """Finished scores below a folder, each file under a hash of everything that its scores depend on."""

    def __init__(
        self,
        folder: Path,
        settings: EvaluateSettings,
        adapters: Mapping[str, str | None],
        *,
        resume: bool,
        processes: Processes,
    ) -> None:
        """Names the folder and hashes base and judges; nothing is read yet.

        Args:
            folder: holds a file per row and domain.
            settings: of the evaluation.
            adapters: row -> hash of its adapter, None for the base.
            resume: takes scores that are finished already; else all are computed again.
            processes: who shares the work; the main one decides and writes.
        """
        self.folder = folder
        self.settings = settings
        self.adapters = adapters
        self.resume = resume
        self.processes = processes
        self.seconds_kept = 0.0  # what the scores that were taken over had once cost
        base = Path(locate_model(settings.base.path, key="base.path"))
        self._weights = [digest for file in sorted(base.rglob("*.safetensors")) for digest in content(file)]
        self._judges = rewards_identity(settings.rewards, but=TRAINING)

    def scores(self, row: str, domain: str, work: Callable[[], ImageScores]) -> ImageScores:
        """Returns the scores of a row on a domain, from its file or else from `work`."""
        file = self.folder / f"{row}.{domain}.json"
        key = self.key(row, domain)
        stored = json.loads(file.read_text()) if self.resume and file.exists() else None
        if self.processes.decided(stored is not None and stored["key"] == key):
            assert stored is not None
            self.seconds_kept += stored["seconds"]
            return stored["scores"]
        started = time.monotonic()
        scores = work()
        if self.processes.is_main:
            seconds = round(time.monotonic() - started, 1)
            write_json(file, {"key": key, "seconds": seconds, "scores": scores})
        return scores

    def key(self, row: str, domain: str) -> str:
        """Returns the hash of all that the scores of a row on a domain depend on."""
        settings = self.settings
        spec = settings.rows[row]
        parts = {
            "base": settings.base.model_dump(mode="json", exclude={"offline"}),
            "code": code_versions(settings.base),
            "weights": self._weights,
            "judges": self._judges,
            "adapter": self.adapters[row],
            "guidance": spec.guidance_scale,
            "prompts": sha256(locate(settings.domains[domain].path)),
            "file": settings.domains[domain].model_dump(mode="json", exclude={*PROMPT_CHECKS, "seeds"}),
            "steps": settings.num_steps,
            "seeds": [settings.run.seed, *settings.seeds_of(domain)],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
