"""The command line. Errors are for __main__; what a command does is in commands/, what things mean in the specs."""

from __future__ import annotations

from importlib.metadata import version

import click

from ensadv_data.commands import chains, making, measuring, moving, sharing, showing

__all__ = ["cli"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("ensadv-data"), prog_name="ensadv-data")
def cli() -> None:
    """Precompute adversarial directions of static models, and train on them (Ensemble Adversarial Training).

    Begin with:  ensadv-data demo
    """


for command in (
    chains.demo,
    chains.run,
    chains.plan,
    making.fetch,
    making.train,
    making.precompute,
    measuring.evaluate,
    measuring.diagnose,
    measuring.bench,
    moving.push,
    moving.pull,
    moving.export,
    moving.import_set,
    showing.inspect,
    showing.report,
    sharing.keygen,
    sharing.sign,
    sharing.verify,
    sharing.describe,
    sharing.catalogue,
):
    cli.add_command(command)
