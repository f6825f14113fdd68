"""Reporting of a run: terminal output, metrics, pictures, the HTML page and Weights & Biases."""

from umd_eqx.report.heatmap import HeatMap as HeatMap
from umd_eqx.report.metrics import MetricsFile as MetricsFile
from umd_eqx.report.metrics import insert_row as insert_row
from umd_eqx.report.metrics import read_metrics as read_metrics
from umd_eqx.report.results import read_results as read_results
from umd_eqx.report.results import write_report as write_report
from umd_eqx.report.results import write_results as write_results
from umd_eqx.report.rundir import RunDirectory as RunDirectory
from umd_eqx.report.sinks import Pictures as Pictures
from umd_eqx.report.sinks import Wandb as Wandb
from umd_eqx.report.sinks import results_table as results_table
from umd_eqx.report.sinks import save_pictures as save_pictures
from umd_eqx.report.sinks import save_png as save_png
from umd_eqx.report.tables import Table as Table
from umd_eqx.report.tables import as_text as as_text
from umd_eqx.report.terminal import Terminal as Terminal
from umd_eqx.report.webpage import write_webpage as write_webpage
