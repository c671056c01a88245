"""`python -m nic_hf` is the command `nic`."""

from .cli import app

if __name__ == "__main__":
    app(prog_name="nic")
