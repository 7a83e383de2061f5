"""``python -m foundation`` is the console command."""

from foundation.cli import run

if __name__ == "__main__":  # processes that a command starts import this file under another name
    run()
