"""How a run comes to train: the config settled, the folder made, ranks started on this host, and what each of them does from beginning to end."""
