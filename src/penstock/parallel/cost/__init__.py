"""What a layout will cost, from shapes alone: bytes sent for every purpose, and bytes held."""
