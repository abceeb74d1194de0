"""Task-labelled prompts: reading, writing, checking and encoding them, and making new ones."""
