"""Floor 5: the page on which a run is looked at, and the server that gives it what it shows; a process of its own, which loads no torch."""
