"""The work of the commands: a dataclass of options and a `run` each."""
