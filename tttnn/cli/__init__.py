"""The command line."""

from tttnn.cli.main import main


__all__ = ["main"]
