"""The shared devnets."""

from tests.devnet.fixtures import devnet

__all__ = ["devnet"]
