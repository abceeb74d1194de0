"""Keeps libraries from greeting, and from drawing their own progress bars and hints into ours."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def silence_imports() -> None:
    """Silences what libraries say while they are imported; to be called before."""
    # transformers greets every import without torchvision with hints about image processors.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # tqdm misses the widgets of notebooks, which our own progress does without.
    warnings.filterwarnings("ignore", message="IProgress not found")
    # peft imports bitsandbytes where it is installed, which then misses kernels that nobody needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences progress bars and everything below an error inside the context."""
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
