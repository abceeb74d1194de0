"""What surrounds a training: run folder, processes, identity, and how its parts are put together."""
