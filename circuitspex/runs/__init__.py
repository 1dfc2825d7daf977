"""Settings in, a folder of results out."""

from circuitspex.runs.discover import SETTINGS, SUMMARY, Result, discover, read_summary
from circuitspex.runs.settings import Plan, Settings, parse_value, setting_name, setting_names

__all__ = [
    "SETTINGS",
    "SUMMARY",
    "Plan",
    "Result",
    "Settings",
    "discover",
    "parse_value",
    "read_summary",
    "setting_name",
    "setting_names",
]
