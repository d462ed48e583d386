"""``python -m edge_cl_export`` is ``edge-cl export``."""

import sys

import click

from edge_cl.errors import EdgeCLError
from edge_cl_export.command import export

try:
    export.main(prog_name="edge-cl export")
except EdgeCLError as error:
    click.echo(f"edge-cl: {error}", err=True)
    sys.exit(1)
