"""The commands: a file of options each."""
