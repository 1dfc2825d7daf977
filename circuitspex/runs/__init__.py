"""Settings in, a folder of results out."""

from circuitspex.runs.discover import SETTINGS, discover
from circuitspex.runs.settings import Plan, Settings, parse_value, setting_name, setting_names
