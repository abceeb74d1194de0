"""Pretrained pipelines behind the border: the only place where sigma becomes a timestep."""
