"""Floor 1: every setting, typed and documented, in one place; errors that name the mend."""

from penstock.config.disk import disk_errors, sync_folder
from penstock.config.errors import ConfigError, EchoedError, RankFailed, SharedError, UserError, nearest
from penstock.config.explain import explain
from penstock.config.leave import leave
from penstock.config.load import changed_settings, flat, load_config, parse_config, preset_dir, preset_names, to_toml, walk_settings, with_values
from penstock.config.schema import (
    BatchSection,
    Config,
    DataSection,
    ElasticSection,
    EvalSection,
    ExchangeSection,
    ModelSection,
    MoESection,
    OptimSection,
    PipelineSection,
    RopeScaling,
    SurviveSection,
)
from penstock.config.stepback import step_back
from penstock.config.watching import AlertsSection

__all__ = [
    "AlertsSection", "BatchSection", "Config", "ConfigError", "DataSection", "EchoedError", "ElasticSection", "EvalSection", "ExchangeSection",
    "MoESection", "ModelSection", "OptimSection", "PipelineSection", "RankFailed", "RopeScaling", "SharedError", "SurviveSection", "UserError",
    "changed_settings", "disk_errors", "explain", "flat", "leave", "load_config", "nearest", "parse_config", "preset_dir", "preset_names",
    "step_back", "sync_folder", "to_toml", "walk_settings", "with_values",
]  # fmt: skip
