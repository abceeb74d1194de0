"""The embedded miniature: a small drawn world, its captions, its noise, and how its models are built."""
