"""Learning curves of runs, compared."""
