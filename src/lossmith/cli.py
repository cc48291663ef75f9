"""Command line: parses and calls; decides nothing."""


def main() -> None:
    """Entry point."""
