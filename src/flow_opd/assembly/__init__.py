"""From settings to objects: what several stages put together in the same way."""
