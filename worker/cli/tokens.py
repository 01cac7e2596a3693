"""The commands `tokens add`, `ls`, `rotate` and `revoke`."""

import re
from datetime import timedelta
from typing import Annotated, Any

import typer

from worker import clock
from worker.catalogue import AccessToken
from worker.cli.arguments import duration
from worker.cli.errors import Failure, UsageError
from worker.cli.output import AsJson, note, print_json, print_table, say
from worker.cli.session import opened
from worker.gateway.access import ALL, TokenVerb, new_token

app = typer.Typer(add_completion=False, no_args_is_help=True)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
Name = Annotated[str, typer.Argument(metavar="NAME", help="The service that the token is for.")]


@app.callback()
def _tokens() -> None:
    """Make, list, rotate and revoke the access tokens of the gateway.

    Examples:

        zot-artifacts tokens add ci --bucket releases --verb read --verb upload --expires 90d
        zot-artifacts tokens ls
        zot-artifacts tokens revoke ci
    """


@app.command("add")
def add(
    name: Name,
    bucket: Annotated[
        list[str],
        typer.Option(
            "--bucket",
            metavar="BUCKET[/PREFIX]",
            help="The bucket or prefix that it is valid for; `*` for all. Can be repeated.",
        ),
    ],
    verb: Annotated[list[TokenVerb], typer.Option("--verb", metavar="VERB", help="What it allows. Can be repeated.")],
    expires: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration, metavar="TIME", help="How long it is valid, such as 90d; without it, until it is revoked."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token and print it once; only a hash of it is kept.

    VERB is read, upload, import, replicate, verify, delete, purge or adopt.
    `purge` beside `delete` also allows deletes that cannot be undone.
    `upload` allows sending bytes; `import` allows naming a file or a URL that the worker reads.

    Examples:

        zot-artifacts tokens add ci --bucket releases --verb read --verb upload --expires 90d
        zot-artifacts tokens add site --bucket releases/public/ --verb read
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name: letters, digits, '.', '_' and '-' are expected, 64 at most")
    if expires == timedelta():
        raise UsageError("--expires 0: the token would be invalid at once; leave it out for one without an end")
    now = clock.now()
    record, text = new_token(name, bucket, verb, now=now, expires_at=now + expires if expires else None)
    with opened() as session:
        if not session.catalogue.access_tokens.add(record):
            raise Failure(
                f"there is a valid token {name}: `zot-artifacts tokens rotate {name}` replaces its secret",
                type_="TokenExists",
            )
    _print_once(record, text, as_json=as_json)


@app.command("ls")
def list_(as_json: AsJson = False) -> None:
    """List the tokens, what they allow, and until when; the secrets are not kept.

    Example:

        zot-artifacts tokens ls
    """
    with opened() as session:
        found = session.catalogue.access_tokens.all()
    if as_json:
        print_json({"tokens": [_document(token) for token in found]})
        return
    rows = [
        (token.name, token.id, _state(token), " ".join(token.buckets), " ".join(token.verbs), token.expires_at)
        for token in found
    ]
    columns = ("name", "id", "state", "buckets", "verbs", "expires")
    print_table(columns, rows, empty="no tokens", flexible=("buckets", "verbs"))


@app.command("rotate")
def rotate(
    name: Name,
    grace: Annotated[
        timedelta,
        typer.Option(
            parser=duration,
            metavar="TIME",
            show_default=False,
            help="How long the old secret stays valid, such as 1h; by default it is invalid at once.",
        ),
    ] = timedelta(),
    as_json: AsJson = False,
) -> None:
    """Give a token a new secret and print it once; it allows what the old one does.

    Example:

        zot-artifacts tokens rotate ci --grace 1h
    """
    now = clock.now()
    fresh, text = new_token(name, [ALL], [], now=now, expires_at=None)
    with opened() as session:
        tokens = session.catalogue.access_tokens
        if not tokens.rotate(name, fresh, old_until=now + grace):
            raise _unknown(name)
        record = tokens.get(fresh.id)
    assert record is not None
    _print_once(record, text, as_json=as_json)


@app.command("revoke")
def revoke(name: Name, as_json: AsJson = False) -> None:
    """Make a token invalid at once, with all its secrets.

    Example:

        zot-artifacts tokens revoke ci
    """
    with opened() as session:
        revoked = session.catalogue.access_tokens.revoke(name, clock.now())
    if not revoked:
        raise _unknown(name)
    if as_json:
        print_json({"name": name, "revoked": revoked})
    else:
        say(f"token {name} is revoked")


def _unknown(name: str) -> Failure:
    return Failure(f"there is no valid token {name}; see `zot-artifacts tokens ls`", type_="UnknownToken")


def _print_once(token: AccessToken, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json({**_document(token), "token": text})
        return
    say(text)
    note(f"token {token.name}: {' '.join(token.verbs)} on {' '.join(token.buckets)}; it is not shown again")


def _document(token: AccessToken) -> dict[str, Any]:
    return {
        "name": token.name,
        "id": token.id,
        "state": _state(token),
        "buckets": token.buckets,
        "verbs": token.verbs,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "revoked_at": token.revoked_at,
    }


def _state(token: AccessToken) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "valid" if token.valid(clock.now()) else "expired"
