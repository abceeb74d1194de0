"""The words that captions are made of."""

from __future__ import annotations

from functools import cache

from flow_opd.miniature.captions import COMPOSITION, PREFERENCE, QUALITY, TAGS, TASKS, TEXT, caption, words
from flow_opd.miniature.prompts import every


@cache
def vocabulary() -> tuple[str, ...]:
    """Returns the world's words, sorted, with the quote mark and without what signs say."""
    assert {COMPOSITION, TEXT, PREFERENCE, QUALITY} == set(TASKS)
    known = {
        word
        for domain in (*TAGS, PREFERENCE, QUALITY)
        for one in every(domain)
        for word in words(caption(one))
    }
    known |= set(words(caption({"text": ""})))
    return tuple(sorted(known))
