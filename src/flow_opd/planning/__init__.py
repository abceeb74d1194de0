"""What a training will need, before it runs: shapes without weights, counted parameters, bytes and FLOPs."""
