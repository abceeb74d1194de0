"""Uploads an adapter with its card to the Hugging Face hub, or says what would be uploaded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from flow_opd.adapters.formats.reading import PICKLED, weights_file
from flow_opd.config.options import PublishSettings
from flow_opd.errors import DataError
from flow_opd.hub import hub_errors
from flow_opd.layout import CARD
from flow_opd.runs.adapters import adapter_of


def run(settings: PublishSettings) -> Path:
    """Uploads the adapter folder and returns it; with `dry_run` it only lists what would go.

    Raises:
        DataError: if the folder holds weights that could run code, or no card for this repository.
        ConfigError: if the hub does not take it.
    """
    folder = Path(adapter_of(str(settings.folder)))
    files = _files(folder)
    card = _card(folder, settings.repo)
    _print(files, folder, card, settings)
    if not settings.dry_run:
        _upload(files, folder, settings)
    return folder


def _files(folder: Path) -> list[Path]:
    """Returns what would be uploaded: all files that are not hidden.

    Raises:
        DataError: if one of them could run code when loaded.
        AdapterError: if there is no adapter.
    """
    weights_file(folder)
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    unsafe = [str(file) for file in files if file.suffix in PICKLED]
    if unsafe:
        raise DataError(
            "weights in a file that could run code",
            value=unsafe,
            allowed="safetensors",
            fix="remove these files from the folder, or convert them",
        )
    return files


def _card(folder: Path, repo: str) -> ModelCard:
    """Returns the card of a folder.

    Raises:
        DataError: if there is none, or it loads the adapter from elsewhere.
    """
    file = folder / CARD
    if not file.is_file() or f"{repo!r})" not in file.read_text(encoding="utf-8"):
        raise DataError(
            "no model card" if not file.is_file() else "a model card that loads from another place",
            value=str(file),
            allowed=f"a README.md whose lines load {repo!r}",
            fix=f"write it with: flow-opd card RUN --repo {repo}",
        )
    return ModelCard.load(file)


def _print(files: list[Path], folder: Path, card: ModelCard, settings: PublishSettings) -> None:
    table = Table("file", "size", box=None, header_style="dim")
    for file in files:
        table.add_row(str(file.relative_to(folder)), decimal(file.stat().st_size))
    table.add_row("together", decimal(sum(file.stat().st_size for file in files)), style="bold")
    console = Console()
    heading = "would go" if settings.dry_run else "goes"
    console.print(f"{folder} {heading} to {settings.repo}", highlight=False)
    console.print(table)
    console.print("metadata of the card:", highlight=False)
    console.print(card.data.to_yaml(), highlight=False, markup=False)


def _upload(files: list[Path], folder: Path, settings: PublishSettings) -> None:
    api = HfApi()
    with hub_errors(settings.repo, what="the repository in '--repo'"):
        api.create_repo(settings.repo, private=settings.private, exist_ok=True)
        api.upload_folder(
            repo_id=settings.repo,
            folder_path=folder,
            allow_patterns=[str(file.relative_to(folder)) for file in files],
            commit_message="Adapter and model card by flow-opd",
        )
