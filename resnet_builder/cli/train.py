"""x."""
import click
@click.command("train")
def train() -> None:
    """X."""
