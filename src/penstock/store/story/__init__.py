"""A run's story: the chain of its events, what differs between two snapshots, and whether all is as it was written."""
