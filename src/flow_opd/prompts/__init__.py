"""Task-labelled prompts: reading and writing them, dealing them out to rounds, routing them to teachers."""
