"""Policies: a backbone with a named adapter and a guidance scale, and mixtures of them."""
