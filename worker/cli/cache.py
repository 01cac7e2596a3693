"""The commands `cache stat`, `warm`, `verify` and `drop`."""

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.arguments import ArtifactPath, no_stream
from worker.cli.errors import Failure, UsageError
from worker.cli.output import AsJson, complain, print_json, say
from worker.counted import counted
from worker.exit_status import Status
from worker.readable import size
from worker.settings import Settings, load_settings
from zot_artifact_client import ArtifactClient, ChunkCache
from zot_artifact_client.errors import ClientError, GatewayUnavailable

app = typer.Typer(add_completion=False, no_args_is_help=True)

Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        parser=no_stream,
        metavar="DIR",
        help="The directory of the cache; `cache.root` by default.",
        show_default=False,
    ),
]


@app.callback()
def _cache() -> None:
    """Show, fill, verify or empty the cache that clients on this machine read through.

    Examples:

        zot-artifacts cache stat
        zot-artifacts cache warm models/a.bin
    """


@app.command("stat")
def stat(root: Root = None, as_json: AsJson = False) -> None:
    """Show how many chunks and bytes the cache has.

    Example:

        zot-artifacts cache stat --root /var/cache/artifacts
    """
    cache = _existing(root, load_settings())
    found = cache.stat()
    if as_json:
        document = {"chunks": found.chunks, "bytes": found.bytes, "max_size": cache.max_size}
        print_json({"root": str(cache.root), **document, "min_free": cache.min_free})
    else:
        say(f"{cache.root}: {counted(found.chunks, 'chunk')}, {size(found.bytes)} of {size(cache.max_size)}")


@app.command("warm")
def warm(
    artifacts: Annotated[
        list[str], typer.Argument(metavar="BUCKET/KEY...", help="The artifacts, such as models/a.bin.")
    ],
    root: Root = None,
    gateway: Annotated[
        str | None,
        typer.Option(
            "--gateway", metavar="URL", help="The gateway to read from; `cache.gateway` by default.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch all chunks of artifacts into the cache and verify them, so that later reads need no request.

    The token for the gateway is the setting `cache.token`, or `ZOT_CACHE__TOKEN` in the environment.
    The exit status is 1 if an artifact was not read, and 3 if the gateway did not answer.

    Examples:

        zot-artifacts cache warm models/a.bin models/b.bin
        ZOT_CACHE__TOKEN=… zot-artifacts cache warm --root /srv/cache --gateway https://gateway:8484 models/a.bin
    """
    from worker.cli.progress import bar

    settings = load_settings()
    paths = [ArtifactPath.parse(text) for text in artifacts]
    address, token = gateway or settings.cache.gateway, settings.cache.token
    if address is None or token is None:
        lacking = "no gateway is known: give --gateway URL or set cache.gateway" if address is None else "no token"
        raise UsageError(f"{lacking}; the token is the setting cache.token or ZOT_CACHE__TOKEN")
    cache = _cache_of(root, settings)
    warmed, status = [], Status.GOOD
    with (
        ArtifactClient(gateway=address, token=token.get_secret_value(), cache=cache) as client,
        bar("warming") as shown,
    ):
        for path in paths:
            try:
                artifact = client.warm(path.bucket, path.key, on_progress=shown.update)
            except ClientError as error:
                complain(str(error) if str(path) in str(error) else f"{path}: {error}")
                status = max(status, Status.UNKNOWN if isinstance(error, GatewayUnavailable) else Status.BAD)
            else:
                if artifact.manifest is None and artifact.size:
                    complain(f"{path}: no chunks of it are recorded, so the cache cannot keep it; verify it first")
                    status = max(status, Status.BAD)
                    continue
                warmed.append({"artifact": str(path), "size": artifact.size, "sha256": artifact.sha256})
    found = cache.stat()
    if as_json:
        print_json({"root": str(cache.root), "warmed": warmed, "fetched": found.misses, "there": found.hits})
    else:
        say(
            f"{cache.root}: {counted(len(warmed), 'artifact')}, "
            f"{counted(found.misses, 'chunk')} fetched, {found.hits} there already"
        )
    raise typer.Exit(status)


@app.command("verify")
def verify(root: Root = None, as_json: AsJson = False) -> None:
    """Read all chunks from the disk and remove those whose bytes are wrong; the next reader fetches them again.

    The exit status is 1 if there were any: the disk should be replaced.

    Example:

        zot-artifacts cache verify
    """
    from worker.cli.progress import bar

    cache = _existing(root, load_settings())
    before = cache.stat()
    with bar("verifying") as shown:
        shown.start(before.bytes, "verifying")
        wrong = cache.verify(shown.advance)
    if as_json:
        print_json({"root": str(cache.root), "verified": before.chunks - wrong, "removed": wrong})
    else:
        say(f"{cache.root}: {counted(before.chunks - wrong, 'chunk')} verified, {wrong} damaged and removed")
    raise typer.Exit(Status.BAD if wrong else Status.GOOD)


@app.command("drop")
def drop(root: Root = None, as_json: AsJson = False) -> None:
    """Remove all chunks. Readers fetch them again.

    The exit status is 1 if chunks are left.

    Example:

        zot-artifacts cache drop
    """
    cache = _existing(root, load_settings())
    found = cache.stat()
    cache.drop()
    left = cache.stat()
    removed, freed = max(0, found.chunks - left.chunks), max(0, found.bytes - left.bytes)
    if as_json:
        print_json({"root": str(cache.root), "removed": removed, "bytes": freed, "left": left.chunks})
    else:
        say(f"{cache.root}: {counted(removed, 'chunk')} removed, {size(freed)}")
    if left.chunks:
        complain(f"{cache.root}: {counted(left.chunks, 'chunk')} left: clients use it, or this user may not remove it")
        raise typer.Exit(Status.BAD)


def _cache_of(root: Path | None, settings: Settings) -> ChunkCache:
    """Return the cache that the command line or the settings name; it is made if it is not there."""
    directory = root or settings.cache.root
    if directory is None:
        raise UsageError("no cache is known: give --root DIR or set cache.root")
    return ChunkCache(directory, max_size=int(settings.cache.max_size), min_free=int(settings.cache.min_free))


def _existing(root: Path | None, settings: Settings) -> ChunkCache:
    """Return the cache, which must be there: another directory is a misspelt one."""
    directory = root or settings.cache.root
    if directory is not None and not (directory / "chunks").is_dir():
        raise Failure(f"{directory} is no cache: a client or `cache warm` makes one", Status.USAGE, type_="NoCache")
    return _cache_of(root, settings)
