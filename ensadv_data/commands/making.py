"""Commands that make data, models and stores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ensadv_data.cluster import Tls
from ensadv_data.data import open_data
from ensadv_data.data.fetch import fetch as fetch_data
from ensadv_data.models import ARCHITECTURES
from ensadv_data.objects import Shelf
from ensadv_data.options import (
    PATH,
    STORE,
    data_options,
    device_option,
    given,
    named,
    read_bytes,
    seed_option,
    shared_work,
)
from ensadv_data.precompute import precompute_store
from ensadv_data.spec import (
    ATTACKS,
    DataSpec,
    PrecomputeSpec,
    TrainSpec,
    checked,
)
from ensadv_data.store import Cache
from ensadv_data.terminal import print_notes
from ensadv_data.training import train as train_model

__all__ = ["fetch", "precompute", "train"]


@click.command(epilog="Example:  ensadv-data fetch mnist")
@click.argument("name")
@click.option("--data-dir", type=PATH, help="Where to put it, in a folder of its name.")
@click.option("--mirror", multiple=True, help="A base URL instead of the built-in ones; may be repeated.")
def fetch(name: str, data_dir: Path | None, mirror: tuple[str, ...]) -> None:
    """Download the data set NAME from a list of mirrors; every file's SHA-256 is checked."""
    folder = fetch_data(name, mirrors=mirror or None, home=data_dir, progress=sys.stderr.isatty())
    click.echo(f"{name}: checked, in {folder}")


@click.command(
    epilog="Examples:  ensadv-data train --architecture C --out c.safetensors  (plain);  add --online step-ll "
    "(adversarial);  add --online step-ll --shards STORE (ensemble adversarial)"
)
@data_options
@click.option("--architecture", required=True, help=f"{', '.join(ARCHITECTURES)} (Table 5), or timm:NAME.")
@click.option("--out", type=PATH, required=True, help="Weights to write, FILE.safetensors.")
@click.option("--epochs", type=int, default=6, show_default=True)
@click.option("--batch-size", type=int, default=64, show_default=True)
@seed_option
@click.option("--optimizer", default="adam", show_default=True, help="adam, or rmsprop with the paper's schedule.")
@click.option("--learning-rate", type=float, help="0.001 for adam and 0.045 for rmsprop unless given.")
@click.option("--online", help=f"White-box attack on the model being trained: {', '.join(ATTACKS)}.")
@click.option("--shards", multiple=True, help="A store of static perturbations; may be repeated.")
@click.option("--draws", type=int, help="Use the first so many draws of each store; all unless given.")
@click.option("--static", multiple=True, help="A static model, [NAME=]REF, to compute them at each step instead.")
@click.option("--static-attack", help="Attack of the static models; fgsm unless given.")
@click.option("--static-mode", default="eval", show_default=True, help="eval, or train: dropout active.")
@click.option("--source-per", default="batch", show_default=True, help="batch, or example: a source for each image.")
@click.option("--epsilon", default="0.3", show_default=True, help="0.3, 16/255 or normal:SIGMA,MAX.")
@click.option("--batches", default="pair", show_default=True, help="pair, or replace (half of the batch).")
@click.option("--adversarial-weight", type=float, help="λ: 1 with pair, 0.3 with replace, unless given.")
@click.option("--random-step", default="stored", show_default=True, help="stored or fresh, for R+ directions.")
@click.option(
    "--online-mode", default="train", show_default=True, help="train: dropout active in the gradient; or eval."
)
@click.option(
    "--label-smoothing", type=float, default=0.0, show_default=True, help="Share of the target for all classes."
)
@click.option("--auxiliary-weight", type=float, default=0.0, show_default=True, help="Of Inception's auxiliary logits.")
@click.option("--ema", type=float, help="Decay of a moving average of the weights, to be written in their place.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Parts of a batch, one after the other.")
@click.option("--augment", help="crop[=PIXELS], flip, random-resized-crop[=SHARE]; of a store of views its own.")
@click.option("--amp", is_flag=True, help="bfloat16 autocast; float32 on a device that only imitates it.")
@click.option("--threads", type=int, help="Threads of the computation; PyTorch's choice unless given.")
@click.option(
    "--window", type=int, default=0, show_default=True, help="Shuffle inside windows of W blocks; 0: globally."
)
@device_option
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=200, show_default=True, help="Steps.")
@click.option("--log-every", type=click.IntRange(min=1), default=10, show_default=True, help="Steps.")
@click.option("--prefetch", type=click.IntRange(min=0), default=2, show_default=True, help="Steps to read ahead.")
@click.option(
    "--cache-bytes",
    default="1GiB",
    show_default=True,
    callback=read_bytes,
    help="Room for decompressed chunks.",
)
@click.option("--cache", type=PATH, help="Folder for copies of chunks that are fetched from far stores.")
@click.option(
    "--cache-limit", default="20GiB", show_default=True, callback=read_bytes, help="Room for them; the oldest go."
)
@click.option("--tensorboard", type=PATH, help="Folder for TensorBoard as well.")
def train(
    data: dict[str, Any],
    limit: int | None,
    out: Path,
    checkpoint_every: int,
    log_every: int,
    prefetch: int,
    cache_bytes: int,
    cache: Path | None,
    cache_limit: int,
    tensorboard: Path | None,
    static: tuple[str, ...],
    **fields: Any,
) -> None:
    """Train a model: plain, adversarially (--online), or on an ensemble (--online and --shards).

    --static computes at each step what --shards reads: slower, and what a store is to be compared with.

    Processes of torchrun share each batch:  torchrun --nproc-per-node 4 -m ensadv_data train …
    """
    spec = checked(TrainSpec, {**given(fields), "static": named(static)}, where="train")
    where = checked(DataSpec, {**data, "limit": limit}, where="train")
    with shared_work(spec.device) as place:
        made = train_model(
            spec,
            open_data(where, "train"),
            out,
            checkpoint_every=checkpoint_every,
            log_every=log_every,
            prefetch=prefetch,
            cache=Cache(cache_bytes, Shelf(cache, cache_limit) if cache else None),
            tensorboard=tensorboard,
        )
    if place.rank:
        return
    print_notes(made.notes)
    state = (
        "was finished before and was left alone" if made.was_complete else f"{made.steps} steps, {made.seconds:.1f} s"
    )
    click.echo(f"{made.path}: {state}; weights {made.digest[:16]}")


@click.command(
    epilog="Example:  ensadv-data precompute --model b=b.safetensors --model c=c.safetensors --attack fgsm "
    "--attack r-fgsm:alpha=0.1 --mode train --out shards"
)
@data_options
@click.option("--model", "models", multiple=True, required=True, help="A static model, NAME=REF; may be repeated.")
@click.option("--attack", "attacks", multiple=True, required=True, help="NAME[:KEY=VALUE,…]; may be repeated.")
@click.option("--out", type=STORE, required=True, help="Folder of the store, or s3://BUCKET/PREFIX, gs://…, az://….")
@click.option(
    "--draws", type=int, help="Perturbations an example; unless given, 4 for training with R+, PGD or dropout, else 1."
)
@click.option("--split", default="train", show_default=True, help="train, or test: for evaluate --shards.")
@click.option("--labels", default="predicted", show_default=True, help="predicted, or true: for evaluate --shards.")
@click.option("--mode", default="eval", show_default=True, help="eval, or train: dropout active.")
@click.option("--augment", help="A view for each draw: random-resized-crop[=SHARE], crop[=PIXELS], flip.")
@click.option("--zeros", default="keep", show_default=True, help="keep, or fill with a deterministic coin.")
@click.option("--loss", default="margin", show_default=True, help="margin, or ce for comparison.")
@seed_option
@click.option("--batch-size", default="64", show_default=True, help="Images at once, or auto: found by trial.")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    help="float32; exact: signs of float64, some images twice; tf32 (GPU), bfloat16: faster.",
)
@click.option("--compile", is_flag=True, help="Compile the models by torch.compile.")
@device_option
@click.option("--workers", type=click.IntRange(min=0), help="Processes here; one a core unless given; 0: this process.")
@click.option("--scheduler", help="Address of a running dask cluster, tcp://… or tls://…, instead of --workers.")
@click.option("--gpus", type=click.IntRange(min=0), default=0, help="Workers here, each with a GPU of its own.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="Where workers of other machines may join.")
@click.option(
    "--tls", "tls", type=PATH, help="Folder with ca.pem, cert.pem and key.pem: encrypt, and let nobody else in."
)
@click.option(
    "--worker-timeout", type=float, default=120, show_default=True, help="Seconds to wait where none is there."
)
@click.option("--repair", is_flag=True, help="Read all of a finished store, and compute again what is damaged.")
def precompute(
    data: dict[str, Any],
    limit: int | None,
    models: tuple[str, ...],
    out: Path | str,
    workers: int | None,
    scheduler: str | None,
    gpus: int,
    listen: str,
    tls: Path | None,
    worker_timeout: float,
    repair: bool,
    **fields: Any,
) -> None:
    """Compute the signed gradients of static models over a whole training set, or test set, into a store.

    Ctrl-C at any time; the same command goes on where it stopped.
    """
    spec = checked(PrecomputeSpec, {**given(fields), "models": named(models)}, where="precompute")
    where = checked(DataSpec, {**data, "limit": limit}, where="precompute")
    outcome = precompute_store(
        spec,
        where,
        out,
        workers=workers,
        scheduler=scheduler,
        gpus=gpus,
        listen=listen,
        tls=Tls(tls / "ca.pem", tls / "cert.pem", tls / "key.pem") if tls else None,
        patience=worker_timeout,
        repair=repair,
        say=lambda line: click.echo(line, err=True),
    )
    print_notes(outcome.notes)
    if outcome.was_complete:
        click.echo(f"{out}: was finished before and was left alone; store {outcome.digest[:16]}")
    else:
        click.echo(
            f"{out}: {outcome.computed} of {outcome.blocks} blocks computed in {outcome.seconds:.1f} s; "
            f"store {outcome.digest[:16]}"
        )
