"""FLOPs of an SD3 transformer by pencil and paper: every matrix product, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

SINES = 256  # numbers that stand for sigma


@dataclass(frozen=True)
class Sizes:
    """A transformer, and one row that goes through it."""

    width: int
    layers: int
    image: int  # tokens
    text: int  # tokens
    joint: int  # width of a text token
    pooled: int
    channels: int
    patch: int = 2
    dual: int = 0  # first blocks, which have a second attention over the image alone


def linear(tokens: int, inner: int, outer: int) -> int:
    """Returns the FLOPs of a layer on `tokens` tokens."""
    return 2 * tokens * inner * outer


def forward_flops(sizes: Sizes, rank: int) -> int:
    """Returns the FLOPs of one row, with a LoRA on the eight projections of the joint attention."""
    width, image, text = sizes.width, sizes.image, sizes.text

    def adapted(tokens: int) -> int:
        return linear(tokens, width, width) + linear(tokens, width, rank) + linear(tokens, rank, width)

    total = (
        2 * linear(image, sizes.channels * sizes.patch**2, width)  # patches in, patches out
        + linear(text, sizes.joint, width)
        + linear(1, SINES, width)  # sigma
        + linear(1, sizes.pooled, width)
        + 2 * linear(1, width, width)
        + linear(1, width, 2 * width)  # last modulation
    )
    for layer in range(sizes.layers):
        last = layer == sizes.layers - 1
        total += linear(1, width, (9 if layer < sizes.dual else 6) * width)  # modulation of the image
        total += linear(1, width, (2 if last else 6) * width)  # and of the text
        total += 4 * adapted(image) + (3 if last else 4) * adapted(text)
        total += 2 * 2 * (image + text) ** 2 * width  # scores, and the values that they mix
        if layer < sizes.dual:
            total += 4 * linear(image, width, width) + 2 * 2 * image**2 * width
        total += 2 * linear(image, width, 4 * width)  # feed forward
        total += 0 if last else 2 * linear(text, width, 4 * width)
    return total
