"""What a run adjusts by what it measures: shares of the batch, a pipeline's schedule and split, micro-batches, places of experts, the exchange."""
