"""Studies: compare losses on the same data with the same budget, paired by seed."""

from lossmith.studies.commands import compare_command
from lossmith.studies.comparison import Listener, Study, compare, open_results
from lossmith.studies.completion_config import CompletionConfig
from lossmith.studies.config import SharedConfig, StudyConfig
from lossmith.studies.encoded import write_tokens
from lossmith.studies.predicting import Prediction, Predictor, open_predictor, predict
from lossmith.studies.preference_config import PreferenceConfig, RatedConfig
from lossmith.studies.recipes import apply_overrides, make_config, read_recipe
from lossmith.studies.schema import described_settings, json_schema
from lossmith.studies.sentiment_config import SentimentConfig
from lossmith.studies.train import train

__all__ = [
    "CompletionConfig",
    "Listener",
    "Prediction",
    "Predictor",
    "PreferenceConfig",
    "RatedConfig",
    "SentimentConfig",
    "SharedConfig",
    "Study",
    "StudyConfig",
    "apply_overrides",
    "compare",
    "compare_command",
    "described_settings",
    "json_schema",
    "make_config",
    "open_predictor",
    "open_results",
    "predict",
    "read_recipe",
    "train",
    "write_tokens",
]
