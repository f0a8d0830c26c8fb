"""Scripts of jobs: where they come from, what they are given, and the call (or none) that their output means."""

from node.scripts.port import Call, NoCall, Outcome, Scripts

__all__ = ["Call", "NoCall", "Outcome", "Scripts"]
