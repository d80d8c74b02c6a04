"""``chronoverse completion``: shell completion for commands and options."""

import click
from click.shell_completion import shell_complete


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print shell completion for commands, options and ids.

    \b
    bash:  chronoverse completion bash >> ~/.bashrc
    zsh:   chronoverse completion zsh >> ~/.zshrc
    fish:  chronoverse completion fish > ~/.config/fish/completions/chronoverse.fish

    Bash must be 4.4 or newer.
    """
    return answer(context.find_root().command, f"{shell}_source")


def answer(program: click.Command, instruction: str) -> int:
    """Runs click's completion ``instruction``, which prints a shell function or completions. Returns the exit code."""
    return shell_complete(program, {}, "chronoverse", "_CHRONOVERSE_COMPLETE", instruction)
