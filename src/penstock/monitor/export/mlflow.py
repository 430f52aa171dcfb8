"""A run's metrics to MLflow: `pip install penstock[mlflow]`; MLFLOW_TRACKING_URI says where its server or folder is.

MLflow allows letters, digits and `_-. /:` in names, which ours are made of. Cost: a request for each `BATCH` values. When not to use it: as the
store.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from penstock.monitor.export.bridges import by_step, needed
from penstock.monitor.series.course import Course

#: Values and parameters that a request of MLflow's may have.
BATCH, PARAMETERS = 1000, 100


def send(run: str, config: dict[str, Any], courses: Iterable[Course]) -> int:
    """Send courses as an MLflow run of this name; returns how many steps."""
    mlflow = needed("mlflow", "mlflow")
    mlflow.set_experiment("penstock")
    client, steps, batch = mlflow.MlflowClient(), 0, []
    with mlflow.start_run(run_name=run) as sent:
        settings = [(name, str(value)[:500]) for name, value in config.items()]
        for begin in range(0, len(settings), PARAMETERS):
            mlflow.log_params(dict(settings[begin : begin + PARAMETERS]))
        for step, time, values in by_step(courses):
            batch += [mlflow.entities.Metric(name, value, round(time * 1e3), step) for name, value in values.items()]
            steps += 1
            while len(batch) >= BATCH:
                client.log_batch(sent.info.run_id, metrics=batch[:BATCH])
                batch = batch[BATCH:]
        if batch:
            client.log_batch(sent.info.run_id, metrics=batch)
    return steps
