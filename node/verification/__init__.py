"""What attesters check, and what they say of it: one module for executions, one for runs without a transaction."""
