"""What a run tells of itself while it trains: rows of metrics, its journal and summary, its monitor, page and report."""
