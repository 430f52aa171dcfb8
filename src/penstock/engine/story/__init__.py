"""What is made of a run's snapshots and history: replays, forks, comparisons, the samples behind them, states for other libraries."""
