"""What coordinators share beside the store: the dispatch queue, leases, news of jobs, task states. Redis, or memory in tests."""
