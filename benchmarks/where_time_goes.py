"""Where the CPU-seconds of a GRPO round, an evaluation or a start go.

    python benchmarks/where_time_goes.py grpo [--config teachers/text] [--rounds 2]
    python benchmarks/where_time_goes.py evaluate [--limit 60] [--rows 2]
    python benchmarks/where_time_goes.py start [--stage teacher]

Each runs the stage itself, in one thread and in a folder that is thrown away, with asset:configs/CONFIG.yaml
and what --set changes of it, and prints a table: what was done, how often, its CPU-seconds, its share of the
whole. The parts do not overlap; what no part was named for is "everything else". Passes are those of the
transformer.

`grpo` leaves the start out; its last round writes a checkpoint. `evaluate` takes so many prompts of each
domain, and the first rows, of which the second has an adapter. `start` ends before the first update or image;
benchmarks/start_cost.py says which library the imports are spent on. `--random` takes a random Stable
Diffusion 3 of 8 layers and 8 heads of 64 in place of the miniature.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

REST, IMPORTS, PASS = "everything else", "imports", "passes"
DOMAINS = ("composition", "text", "preference", "quality")

# Functions as "module:name". They are looked up where they are defined, before a stage is imported that
# takes them from there.
WORK = {
    "flow_opd.backbones.sd3:SD3Backbone.velocity": PASS,
    "torch:Tensor.backward": "backward",
    "flow_opd.backbones.sd3:SD3Backbone.encode_prompts": "text encoders",
    "flow_opd.backbones.pipeline:DiffusersBackbone.decode_latents": "decoding",
    "flow_opd.rewards.geneval:GenEvalReward.score": "reward geneval",
    "flow_opd.rewards.ocr:OCRReward.score": "reward ocr",
    "flow_opd.rewards.deqa:DeQAReward.score": "reward deqa",
    "flow_opd.rewards.pickscore:PickScoreReward.score": "reward pickscore",
    "flow_opd.method.rollouts:WalkNoise.__init__": "noise",
    "flow_opd.method.rollouts:draw_noise": "noise",
    "torch.optim:AdamW.step": "optimizer and average",
    "flow_opd.training.optimizer:EMA.update": "optimizer and average",
    "flow_opd.training.progress:MetricsLog.on_update": "metrics and progress",
    "flow_opd.training.progress:ProgressBar.on_update": "metrics and progress",
    "flow_opd.training.trainer:Trainer.save": "checkpoint",
}
LOADING = {
    "flow_opd.runs.prompts:prompts_of": "prompts read",
    "flow_opd.backbones.loading:load_backbone": "base loaded",
    "flow_opd.rewards.table:build_rewards": "rewards loaded",
    "flow_opd.runs.adapters:load_lora": "adapters",
    "flow_opd.adapters.bank:AdapterBank.put": "adapters",
    "flow_opd.adapters.bank:AdapterBank.add": "adapters",
    "flow_opd.files:sha256": "hashes",
}
RESULTS = {
    "flow_opd.reports.grid:save_pictures": "pictures of the grid saved",
    "flow_opd.reports.grid:compose_grid": "pictures of the grid saved",
    "flow_opd.reports.grid:png_bytes": "pictures of the grid saved",
    "flow_opd.evaluation.table:build_results": "means and intervals",
    "flow_opd.stages.evaluate:_pictures": "pictures of the grid drawn",
    "flow_opd.stages.evaluate:_write_results": "tables and report",
}
WHOLE = frozenset({*LOADING.values(), *RESULTS.values()})
"""Parts that keep what is done inside them."""
FIRST_WORK = (
    "flow_opd.training.trainer:Trainer.round",
    "flow_opd.evaluation.images:ImageSampler.score",
)
STAGES = {"teacher": "teachers/composition", "distill": "distill", "sft": "sft", "evaluate": "evaluate"}


class Meter:
    """Charges the CPU-seconds of this process to the part that runs."""

    def __init__(self) -> None:
        """Nothing runs yet; what runs outside of all parts is not counted."""
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charges what runs inside to `name`, except for the parts in it; one of `WHOLE` keeps all."""
        if self._running and self._running[-1] in WHOLE:
            yield
            return
        self._charge()
        self._running.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = time.process_time()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def watch(self, place: str, name: str, *, outermost: bool = False) -> None:
        """Makes a function a part, but only inside another one unless it is the outermost."""
        replace(place, lambda function: self._watched(function, name, outermost))

    def _watched(self, function: Callable[..., Any], name: str, outermost: bool) -> Callable[..., Any]:
        @wraps(function, updated=())
        def measured(*given: Any, **named: Any) -> Any:
            if not (outermost or self._running):
                return function(*given, **named)
            with self.part(_kind_of_pass() if name == PASS else name):
                return function(*given, **named)

        return measured

    def table(self, whole: str, *, per: int = 1) -> str:
        """Returns the parts of `whole`, the largest first; `per` divides calls and seconds."""
        total = sum(self.seconds.values())
        lines = [f"| {whole} | times | CPU-seconds | share |", "|---|---|---|---|"]
        for name, seconds in self.seconds.most_common():
            share = f"{100 * seconds / total:.1f} %"
            lines.append(f"| {name} | {self.calls[name] / per:.4g} | {seconds / per:.2f} | {share} |")
        return "\n".join([*lines, f"| all | | {total / per:.2f} | |"])


def replace(place: str, other: Callable[[Any], Any]) -> None:
    """Puts `other(function)` in the place of a function, named "module:name" or "module:Class.name"."""
    module, path = place.split(":")
    owner: Any = importlib.import_module(module)
    *holders, last = path.split(".")
    for holder in holders:
        owner = getattr(owner, holder)
    setattr(owner, last, other(getattr(owner, last)))


def _kind_of_pass() -> str:
    trained = importlib.import_module("torch").is_grad_enabled()
    return f"{PASS} with a graph" if trained else f"{PASS} without a graph"


class BegunError(Exception):
    """The start is over."""


def stop(*given: object, **named: object) -> NoReturn:
    """Stands where the first work begins."""
    raise BegunError


def settings_of(stage: str, config: str, sets: Sequence[str], folder: Path) -> Any:
    """Returns the settings of a stage, in one thread and in a folder of its own."""
    words = [f"run.out={folder / 'run'}", "run.threads=1", *sets]
    model = importlib.import_module("flow_opd.config.stages").settings_of(stage)
    locate = importlib.import_module("flow_opd.config.locations").locate
    read = importlib.import_module("flow_opd.config.file.reader").read
    file = locate(f"asset:configs/{config}.yaml")
    return read(file, model, words)


def run(stage: str, settings: Any) -> None:
    """Runs a stage."""
    importlib.import_module(f"flow_opd.stages.{stage}").run(settings, resume=False)


def random_base(folder: Path) -> list[str]:
    """Writes the random base and returns the settings that name it."""
    write = importlib.import_module("random_base").write_base
    write(folder / "base", layers=8, heads=8, latent_side=16)
    return [f"base.path={folder / 'base'}"]


def grpo(asked: argparse.Namespace, folder: Path) -> str:
    """Returns the table of a round."""
    config = asked.config or STAGES["teacher"]
    sets = [f"run.rounds={asked.rounds}", *(random_base(folder) if asked.random else []), *asked.set]
    settings = settings_of("teacher", config, sets, folder)
    meter = Meter()
    for place, name in WORK.items():
        meter.watch(place, name)
    meter.watch("flow_opd.training.trainer:Trainer.round", REST, outermost=True)
    run("teacher", settings)
    return meter.table(f"a round of {config}", per=asked.rounds)


def evaluate(asked: argparse.Namespace, folder: Path) -> str:
    """Returns the table of an evaluation of the first rows."""
    config = asked.config or STAGES["evaluate"]
    limits = [f"domains.{name}.limit={asked.limit}" for name in DOMAINS]
    sets = [*limits, *(random_base(folder) if asked.random else []), *asked.set]
    settings = settings_of("evaluate", config, sets, folder)
    rows = dict(list(settings.rows.items())[: asked.rows])
    if asked.random:
        write = importlib.import_module("random_base").write_adapter
        write(folder / "base", folder / "adapter", rank=32, seed=0)
        adapters = {name: row.adapter and str(folder / "adapter") for name, row in rows.items()}
        rows = {name: row.model_copy(update={"adapter": adapters[name]}) for name, row in rows.items()}
    meter = Meter()
    for place, name in (WORK | LOADING | RESULTS).items():
        meter.watch(place, name)
    meter.watch("flow_opd.stages.evaluate:run", REST, outermost=True)
    run("evaluate", settings.model_copy(update={"rows": rows, "roles": None}))
    return meter.table(f"an evaluation of {asked.limit * len(DOMAINS) * len(rows)} images")


def start(asked: argparse.Namespace, folder: Path) -> str:
    """Returns the table of a start, from the first line of a process to the first update or image."""
    meter = Meter()
    with meter.part(REST):
        with meter.part("command line"):
            importlib.import_module("flow_opd.cli")
        with meter.part("configuration"):
            settings = settings_of(asked.stage, asked.config or STAGES[asked.stage], asked.set, folder)
        common = importlib.import_module("flow_opd.cli.common")
        with meter.part(IMPORTS), common.uncollected():
            for place, name in LOADING.items():
                meter.watch(place, name)
            for place in FIRST_WORK:
                replace(place, lambda function: stop)
            importlib.import_module(f"flow_opd.stages.{asked.stage}")
        with suppress(BegunError):
            run(asked.stage, settings)
    return meter.table(f"a start of {asked.stage}")


def main() -> None:
    """Measures what is asked for and prints its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["grpo", "evaluate", "start"])
    parser.add_argument("--config", help="of the package, such as grpo-mix")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=60, help="prompts of each domain")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--stage", choices=STAGES, default="teacher")
    parser.add_argument("--random", action="store_true", help="a random base of 8 x 8 x 64")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        table = {"grpo": grpo, "evaluate": evaluate, "start": start}[asked.what](asked, Path(name))
    print(table)


if __name__ == "__main__":
    main()
