"""Settings in, a folder of results out."""

from circuitspex.runs.discover import SETTINGS, discover
from circuitspex.runs.settings import (
    DECIDES,
    Plan,
    Settings,
    all_settings,
    parse_value,
    setting_name,
)
