"""The words of the miniature's world, and a tokenizer of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

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


MAX_TEXT_TOKENS = 16  # start and end included; text tokens cost as much as image tokens


def build_tokenizer(words: Sequence[str], *, max_length: int = MAX_TEXT_TOKENS) -> CLIPTokenizer:
    """Returns a byte-level BPE tokenizer whose merges come from `words` alone.

    Every word of the list becomes a single token; nearly every other string (the word on a sign) falls
    apart into letters, which is what spelling needs (docs/LOG.md, entry 1, counts the exceptions).

    Args:
        words: lower-case vocabulary of the captions, without the words on signs.
        max_length: tokens per prompt, start and end included.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        special_tokens=[],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.train_from_iterator(sorted(set(words)), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)
