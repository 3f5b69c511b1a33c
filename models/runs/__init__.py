"""The run table: one row for each fine-tuning run, declared once and checked at the border."""

from tunecast.models.runs.advice import warn_about as warn_about
from tunecast.models.runs.append import append_run as append_run
from tunecast.models.runs.columns import COLUMNS as COLUMNS
from tunecast.models.runs.columns import Run as Run
from tunecast.models.runs.columns import column_table as column_table
from tunecast.models.runs.conditions import where as where
from tunecast.models.runs.sources import embedded_tables as embedded_tables
from tunecast.models.runs.sources import is_url as is_url
from tunecast.models.runs.sources import shown as shown
from tunecast.models.runs.summary import describe as describe
from tunecast.models.runs.summary import digest as digest
from tunecast.models.runs.table import has_runs as has_runs
from tunecast.models.runs.table import read_runs as read_runs
