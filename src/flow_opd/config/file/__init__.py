"""Strict YAML: `extends`, overrides, messages that name the line, and the keys that there are."""
