"""What a rank measures: the catalogue of all metrics."""
