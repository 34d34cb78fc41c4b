"""How the ranks of a job are arranged."""
