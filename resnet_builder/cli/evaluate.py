"""x."""
import click
@click.command("evaluate")
def evaluate() -> None:
    """X."""
