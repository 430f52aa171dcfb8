"""What keeps a run's state sound: heartbeats, copies with other ranks, replicas compared, steps judged, and what is done about a bad one."""
