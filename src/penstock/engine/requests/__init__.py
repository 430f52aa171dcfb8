"""What a running run is asked to do from outside, and how all ranks do it between two steps."""
