"""One typed model per stage, read strictly from YAML; knows no torch."""
