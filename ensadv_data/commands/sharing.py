"""Commands for stores that go from team to team: keys, signatures, whether it is true, and what is said of it."""

from __future__ import annotations

import json
import re
import secrets
from pathlib import Path

import click

from ensadv_data.catalogue import read_catalogue, write_catalogue
from ensadv_data.description import CARD, CROISSANT, write_description
from ensadv_data.errors import IntegrityError
from ensadv_data.objects import objects_at
from ensadv_data.options import PATH, STORE, device_option, named, optional_data, read_pairs
from ensadv_data.signature import make_key
from ensadv_data.spec import DataSpec, checked
from ensadv_data.terminal import print_check
from ensadv_data.trust import read_trust
from ensadv_data.verification import Wanted, sign_store, verified

__all__ = ["catalogue", "describe", "keygen", "sign", "verify"]


@click.command(epilog="Example:  ensadv-data keygen --out ~/keys/team-a.key --name team-a")
@click.option("--out", type=PATH, required=True, help="Private key to write; the public one is beside it, .pub.")
@click.option("--name", default="me", show_default=True, help="Whose key: a remark in the public one.")
def keygen(out: Path, name: str) -> None:
    """Make a key pair for signing stores (Ed25519)."""
    public = make_key(out, name)
    click.echo(f"{out}: private key; give it to nobody")
    click.echo(f"{out}.pub: public key {public.keyid[:16]}; who trusts it writes into a trust file:")
    section = name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)
    click.echo(f'[{section}]\nkeys = ["{public}"]')


@click.command(
    epilog="Example:  ensadv-data sign shards --key ~/keys/team-a.key --name mnist-train --licence CC-BY-4.0"
)
@click.argument("store", type=STORE)
@click.option("--key", type=PATH, required=True, help="Private key, as keygen makes it.")
@click.option("--name", required=True, help="What the store is published as: letters, digits, '.', '_', '-'.")
@click.option("--version", type=click.IntRange(min=1), help="Unless given, one more than the last of that name.")
@click.option("--days", type=click.IntRange(min=1), default=365, show_default=True, help="Until it expires.")
@click.option("--creator", default="", help="Who made it.")
@click.option("--licence", default="", help="Such as CC-BY-4.0.")
@click.option("--citation", default="", help="How to cite it, one line.")
@click.option(
    "--model-licence",
    "model_licences",
    multiple=True,
    callback=read_pairs,
    help="Of a static model, SOURCE=LICENCE; may be repeated.",
)
def sign(
    store: Path | str,
    key: Path,
    name: str,
    version: int | None,
    days: int,
    creator: str,
    licence: str,
    citation: str,
    model_licences: dict[str, str],
) -> None:
    """Check the STORE and sign its manifest: a file manifest.sig.json beside it."""
    lines = sign_store(
        objects_at(store),
        key,
        name=name,
        version=version,
        days=days,
        creator=creator,
        licence=licence,
        citation=citation,
        model_licences=model_licences,
    )
    for line in lines:
        print_check(*line)


@click.command(
    epilog="Examples:  ensadv-data verify shards --trust trust.toml --data mnist;  ensadv-data verify shards "
    "--data mnist --recompute 20 --model c=c.safetensors"
)
@click.argument("store", type=STORE)
@click.option("--trust", type=PATH, help="TOML of trusted public keys; yours is ~/.config/ensadv-data/trust.toml.")
@click.option("--unsigned", is_flag=True, help="Look at no signature: check the rest only.")
@click.option("--name", help="Accept no signature but that of the store of this name.")
@optional_data("Compare its images with those of the store.")
@click.option(
    "--recompute", type=click.IntRange(min=0), default=0, show_default=True, help="Compute so many images anew."
)
@click.option("--model", "models", multiple=True, help="A model of the store, NAME=REF; may be repeated.")
@click.option("--seed", type=int, help="Names those examples; drawn unless given.")
@click.option("--tolerance", type=click.FloatRange(0.5, 1), help="Share of values to agree; by precision unless given.")
@device_option
def verify(
    store: Path | str,
    trust: Path | None,
    unsigned: bool,
    name: str | None,
    data: dict[str, str],
    limit: int | None,
    recompute: int,
    models: tuple[str, ...],
    seed: int | None,
    tolerance: float | None,
    device: str,
) -> None:
    """Check a STORE of somebody else's: a line for each check that holds; exit code 4 at the first that does not."""
    if unsigned and (trust is not None or name is not None):
        raise click.UsageError("--unsigned looks at no signature; leave it out, or --trust and --name")
    if models and not recompute:
        raise click.UsageError("--model is for --recompute K")
    wanted = Wanted(
        trust=None if unsigned else read_trust(trust, apart=objects_at(store)),
        name=name,
        data=checked(DataSpec, {**data, "limit": limit}, where="verify") if data else None,
        recompute=recompute,
        models=named(models),
        seed=secrets.randbits(32) if seed is None else seed,
        device=device,
        tolerance=tolerance,
    )
    for line in verified(objects_at(store), wanted):
        print_check(*line)
    click.echo(f"{store}: all of this holds")


@click.command(epilog="Example:  ensadv-data describe shards --url https://example.org/shards")
@click.argument("store", type=STORE)
@click.option("--name", help="What the store is published as; as it is signed, unless given, and so are the others.")
@click.option("--licence", help="Such as CC-BY-4.0.")
@click.option("--creator", help="Who made it.")
@click.option("--citation", help="How to cite it, one line.")
@click.option("--url", help="Where others find the store.")
def describe(
    store: Path | str,
    name: str | None,
    licence: str | None,
    creator: str | None,
    citation: str | None,
    url: str | None,
) -> None:
    """Write a dataset card (README.md) and a Croissant file (croissant.json) beside the STORE's manifest."""
    place = objects_at(store)
    about = write_description(place, name=name, licence=licence, creator=creator, citation=citation, url=url)
    for key in (CARD, CROISSANT):
        click.echo(f"{place}/{key}: {about.name} version {about.version}")
    said = {"--licence": about.licence, "--creator": about.creator, "--citation": about.citation, "--url": url}
    if missing := [option for option, text in said.items() if not text]:
        click.echo(f"not said: {', '.join(missing)}")


@click.command(epilog="Example:  ensadv-data catalogue manifests --trust trust.toml --out index.html")
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, required=True, help="HTML to write.")
@click.option("--trust", type=PATH, help="TOML of trusted public keys; without it no signature is checked.")
@click.option("--title", default="Stores", show_default=True)
def catalogue(folder: Path, out: Path, trust: Path | None, title: str) -> None:
    """Write a page that lists the manifests of a FOLDER: NAME.json with NAME.sig.json, or stores.

    A file that is no manifest is on the page too, with the reason; the exit code is then 4.
    """
    found = read_catalogue(folder, trust=None if trust is None else read_trust(trust, apart=objects_at(folder)))
    path = write_catalogue(out, found, title=title)
    click.echo(f"catalogue: {path}  stores: {len(found.listed)}")
    if found.refused:
        raise IntegrityError(
            f"{folder}: expected manifests only; files that are none: {len(found.refused)}; the page has all, the "
            f"first: {found.refused[0][1]}"
        )
