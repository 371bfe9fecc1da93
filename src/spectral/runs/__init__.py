"""A run's folder: its rows in shards, what the run was, and its summary."""
