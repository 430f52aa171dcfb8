"""Tensor parallelism: the decoder's layers cut over ranks, in 1-D, 2-D and 2.5-D."""
