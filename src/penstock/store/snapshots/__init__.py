"""Snapshots: written by all ranks beside training, published by the lead, listed, named, kept or removed, and taken up in any layout."""
