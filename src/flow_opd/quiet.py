"""Keeps libraries from drawing their own progress bars and hints into ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import diffusers.utils.logging
import transformers.utils.logging

LIBRARIES = (diffusers.utils.logging, transformers.utils.logging)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences progress bars and everything below an error inside the context."""
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in LIBRARIES]
    try:
        for library in LIBRARIES:
            library.set_verbosity_error()
            library.disable_progress_bar()
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
