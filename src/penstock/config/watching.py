"""Settings of what is recorded of a run, and of who is told when something is wrong with it: a part of the one schema (`schema.py`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from penstock.config.section import Count, Positive, Section


class MetricsSection(Section):
    """What is recorded of the run."""

    every: Positive = Field(1, description="Steps between rows in the metrics store.")
    rows: bool = Field(True, description="Record what every rank measures, a row a step.")
    probe_every: Count = Field(
        4, description="Steps between those in which the costlier probes of the model look too; 0: never. More if a step has few tokens."
    )
    trace_s: Annotated[float, Field(ge=0.0)] = Field(0.0, description="Seconds between writings of each rank's last spans; 0: only when asked for.")
    tensorboard: bool = Field(True, description="Write TensorBoard event files too.")
    monitor: bool = Field(True, description="Watch the run from a process beside it, which keeps its metrics and raises alerts.")
    dashboard: bool = Field(True, description="Serve the run's page from a process beside it, and print its link; not below torchrun.")
    peak_tflops: Annotated[float, Field(ge=0.0)] = Field(0.0, description="Peak that utilisation is a share of, TFLOP/s a rank; 0: it is measured.")


class CostSection(Section):
    """What the run's devices cost, so that it can tell what it has come to."""

    per_device_hour: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="Price of one device, which is one rank's, for an hour, in `cost.currency`; 0: not known, and no money is told."
    )
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="Currency of the price: its three letters by ISO 4217, such as USD, EUR or CNY.")


class AlertsSection(Section):
    """Who is told when something is wrong with the run, and what it then does by itself."""

    console: bool = Field(True, description="Print alerts where the run prints.")
    webhook: str = Field(
        "", pattern=r"^(https?://\S+(\s+|$))*$", description="Addresses that get each alert as JSON by HTTP POST, separated by spaces."
    )
    email: str = Field("", pattern=r"^([^@\s]+@[^@\s]+)?$", description="Addresses that get each alert by mail, separated by commas.")
    smtp: str = Field(
        "localhost:25", pattern=r"^[^:\s]+(:\d+)?$",
        description="Server that takes the mail; name and password from PENSTOCK_SMTP_USER and PENSTOCK_SMTP_PASSWORD in the environment.",
    )  # fmt: skip
    command: str = Field("", description="Command that is started for each alert, with the alert as JSON on its standard input.")
    act: str = Field(
        "",
        description="What the run does by itself, as KIND=ACTION separated by commas, such as 'loss_spike=roll_back, non_finite=skip'; actions are "
        "snapshot, lower_rate, stop (saving), skip (the batch), roll_back (to the snapshot before, and skip) and exclude (the rank).",
    )
    most: Positive = Field(
        3, description="How often an action is done: for a kind of alert and start of the run; back to the same snapshot; batches in a row left out."
    )
    rate_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.5, description="What the action lower_rate multiplies learning rates with.")
