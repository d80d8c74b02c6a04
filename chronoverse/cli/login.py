"""The commands ``login`` and ``logout``."""

import click

from chronoverse import errors
from chronoverse.cli import common
from chronoverse.joblog.terminal import plain_text
from chronoverse.settings import Settings, parse


@click.command()
@click.option("--issuer", type=common.checked(parse.issuer), metavar="URL", help="Issuer. Default: the service's.")
@click.option("--client-id", metavar="ID", help="Public client id. Default: the service's.")
@common.yes_option
def login(issuer: str | None, client_id: str | None, yes: bool) -> int:
    """Sign in at the service's issuer.

    Use a browser on any machine. Shows issuer and client first, and asks for confirmation.
    """
    from chronoverse.client.login import IssuerClient, LoginFile

    settings = common.read_settings()
    given = {"issuer": issuer, "client_id": client_id}
    told = dict(settings.sign_in)
    if not (issuer or told["issuer"]) or not (client_id or told["client_id"]):
        told = _ask_service(settings)
        audience = f"audience {told['audience']}" if told["audience"] else "no audience"
        common.print_message(
            f"{settings.service_url} requires a token from {told['issuer']} "
            f"(client {told['client_id']}, {audience}, scopes {told['scopes']})"
        )
        # A malicious service may name another service's audience.
        if not common.may_go_on("The service can use this token wherever it is accepted. Sign in?", yes):
            return 1
    told |= {name: value for name, value in given.items() if value}

    def show(address: str, code: str, complete: str | None) -> None:
        click.echo(f"Open {plain_text(address)} and enter the code {plain_text(code)}", err=True)
        if complete:
            click.echo(f"or open {plain_text(complete)}", err=True)

    try:
        signed_in = IssuerClient(str(told["issuer"]), str(told["client_id"]), settings.ca_file).sign_in(
            str(told["scopes"]), told["audience"], show
        )
    except errors.Unauthorized as error:
        raise errors.Unauthorized(f"the issuer {told['issuer']} did not sign you in: {error}") from error
    LoginFile(settings.data_dir, settings.service_url).write(signed_in)
    common.print_message(f"signed in to {settings.service_url}")
    if settings.token or settings.token_file:
        common.print_message("CHRONOVERSE_TOKEN or CHRONOVERSE_TOKEN_FILE is set: it takes precedence over the sign-in")
    return 0


def _ask_service(settings: Settings) -> dict[str, str | None]:
    from chronoverse.client.client import Client

    client = Client(settings.service_url, ca_file=settings.ca_file)
    try:
        found = client.read("/oidc")
        named = {name: found[name] for name in ("issuer", "client_id", "scopes", "audience")}
        parse.issuer(str(named["issuer"]))
        return named
    except (errors.JobNotFound, KeyError, ValueError) as error:
        raise errors.SettingsError(
            f"the service at {settings.service_url} names no issuer: pass --issuer and --client-id, or set "
            "CHRONOVERSE_TOKEN"
        ) from error
    finally:
        client.close()


@click.command()
def logout() -> None:
    """Sign out, and revoke the sign-in at the issuer."""
    from chronoverse.client.login import IssuerClient, LoginFile

    settings = common.read_settings()
    file = LoginFile(settings.data_dir, settings.service_url)
    signed_in = file.remove() if file.exists else None
    if signed_in is None:
        return common.print_message(f"not signed in to {settings.service_url}")
    try:
        IssuerClient(signed_in.issuer, signed_in.client_id, settings.ca_file).revoke(signed_in)
    except errors.Unreachable as error:
        common.print_message(f"the refresh token was removed here but not revoked: {error}")
    return common.print_message(f"signed out of {settings.service_url}")
