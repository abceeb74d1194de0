"""One frozen base, many named LoRAs: attach, activate, save, load, convert, merge."""
