"""The shared devnets."""

from tests.devnet.fixtures import anvil_devnet, devnet

__all__ = ["anvil_devnet", "devnet"]
