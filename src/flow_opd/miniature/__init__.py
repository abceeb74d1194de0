"""The embedded laboratory: a small drawn world, its captions, its noise, and how its models are built."""
