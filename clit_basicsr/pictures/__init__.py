"""Pictures for people: reading and writing them, and the figures of the commands."""
