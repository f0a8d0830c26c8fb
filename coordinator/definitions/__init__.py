"""From the fields that users post to what keepers agree on: triggers, and the job as a whole."""
