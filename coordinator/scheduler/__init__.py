"""What fires jobs: one scheduler for each kind of trigger."""
