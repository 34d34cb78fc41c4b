"""The command line: commands, and flags made from the config dataclasses."""
