"""The commands: one file a command, each a dataclass of flags with a ``run`` method."""
