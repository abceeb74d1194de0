"""Adapters as other tools write and read them: PEFT, diffusers, ComfyUI, the hub."""
