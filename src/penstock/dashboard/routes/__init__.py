"""Floor 5: the addresses of the API, a module for each subject; a new subject is a module with a `router`, named in `app.py`."""
