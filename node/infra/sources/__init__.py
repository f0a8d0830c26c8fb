"""Reading what conditions watch: URLs, WebSockets and chains, by the scheduler that fires and by keepers who re-check."""

from node.infra.sources.answers import Answer, parse_answer
from node.infra.sources.reader import Heard, Problem, Sources, Value, latest

__all__ = ["Answer", "Heard", "Problem", "Sources", "Value", "latest", "parse_answer"]
