"""Tensors as cells cut by logical position, their contents as chunks known by digest, and the packs in which chunks lie."""
